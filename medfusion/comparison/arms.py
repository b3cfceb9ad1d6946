"""The arms of a comparison: regimes crossed with varied settings, each a checked config."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

from medfusion.config import RunConfig, StrategyOptions, load_config, parse_value
from medfusion.errors import ConfigError, UsageError, did_you_mean
from medfusion.training.personalisation_options import PersonalisationOptions
from medfusion.transport.compression_options import CompressionOptions

Regime = Literal["pooled", "local", "federated", "personalised"]
REGIMES: tuple[Regime, ...] = ("pooled", "local", "federated", "personalised")

# All arms are tested on the same patients, so what names them cannot vary.
_SHARED_BY_ARMS = ("run.task", "simulation")


@dataclass(frozen=True)
class Arm:
    """A regime under certain settings; ``config`` holds both."""

    regime: Regime
    settings: Mapping[str, Any]
    config: RunConfig

    def __str__(self) -> str:
        return ", ".join(
            [self.regime, *(f"{key}={shown(value)}" for key, value in self.settings.items())]
        )


@dataclass(frozen=True)
class _Setting:
    """A varied key with one of its values, and the override that sets it."""

    key: str
    value: Any
    override: str


def plan_arms(
    config: Path,
    *,
    overrides: Sequence[str] = (),
    regimes: Sequence[str] = ("pooled", "local", "federated"),
    vary: Sequence[str] = (),
) -> tuple[Arm, ...]:
    """Return the arms in order: settings as written, the last key fastest; regimes within them.

    Parameters
    ----------
    config
        The run's ``config.toml``.
    overrides
        ``KEY=VALUE`` settings of every arm.
    vary
        ``KEY=A,B,...`` for each varied key; a list is written ``A+B``.

    Raises
    ------
    UsageError
        For an unknown or repeated regime, key or value.
    ConfigError
        If the config of an arm is refused.
    """
    chosen = check_regimes(regimes)
    varied = [_parse_vary(text) for text in vary]
    keys = [key for key, _ in varied]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise UsageError(f"--vary {twice[0]}: given twice; list all values in one --vary")
    load_config(config, overrides)  # its own errors first, free of what varies
    forms = [[_setting(config, overrides, key, text) for text in texts] for key, texts in varied]
    return tuple(
        Arm(regime, {one.key: one.value for one in settings}, _config_of(regime, loaded))
        for settings in product(*forms)
        for loaded in [load_config(config, [*overrides, *(one.override for one in settings)])]
        for regime in chosen
    )


def check_regimes(names: Sequence[str]) -> tuple[Regime, ...]:
    """Return the regimes called ``names``; raises `UsageError`."""
    for name in names:
        if name not in REGIMES:
            raise UsageError(
                f"--regimes {name!r}: expected some of {', '.join(REGIMES)}"
                + did_you_mean(name, REGIMES)
            )
    if not names or len(set(names)) != len(names):
        raise UsageError(f"--regimes: expected some of {', '.join(REGIMES)}, each once")
    return cast(tuple[Regime, ...], tuple(names))


def shown(value: Any) -> str:
    """Write a varied value as the command line does."""
    if isinstance(value, list):
        return "+".join(shown(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_vary(text: str) -> tuple[str, list[str]]:
    key, separator, rest = text.partition("=")
    key, values = key.strip(), [value.strip() for value in rest.split(",")]
    if not separator or not key or not all(values):
        raise UsageError(
            f"--vary {text}: expected KEY=A,B,... such as selection.top_n=4,8 "
            "(a list is written A+B)"
        )
    if len(set(values)) != len(values):
        raise UsageError(f"--vary {text}: expected different values, found one twice")
    if key in _SHARED_BY_ARMS or key.split(".")[0] in _SHARED_BY_ARMS:
        raise UsageError(f"--vary {key}: all arms are tested on the same patients; not this key")
    return key, values


def _setting(config: Path, overrides: Sequence[str], key: str, text: str) -> _Setting:
    """Read a value as it stands or, where the config refuses that, as a list.

    ``image`` is a list of one where the key holds a list, and the plus of ``1e+2`` is no list.
    """
    plain = _Setting(key, parse_value(text), f"{key}={text}")
    items = [parse_value(item) for item in text.split("+")]
    as_list = _Setting(key, items, f"{key}={json.dumps(items, ensure_ascii=False, default=str)}")
    for setting in (plain, as_list):
        try:
            load_config(config, [*overrides, setting.override])
        except ConfigError:
            continue
        return setting
    # Refused both ways, perhaps only without the other keys: loading the arm will tell.
    return as_list if "+" in text else plain


def _config_of(regime: Regime, config: RunConfig) -> RunConfig:
    """Return the config of a regime's runs.

    They release metrics only at the end, unless the config says otherwise: the comparison
    makes its own. A node that is alone has nothing to aggregate, so the strategy, whose rules
    may need several sites, is the plain mean there, and what is between sites is off. The
    personalised regime is the federated one with the models that the sites made their own.

    Raises
    ------
    ConfigError
        If personal models are asked for and the config makes none.
    """
    changes: dict[str, Any] = {}
    if config.evaluation.every is None:
        changes["evaluation"] = config.evaluation.model_copy(update={"every": 0})
    if regime == "personalised" and not config.personalisation.steps:
        raise ConfigError(
            "regime personalised: personalisation.steps = 0 makes no personal models; expected "
            "at least 1"
        )
    if regime in ("pooled", "local"):
        alone = {"min_sites": 1, "secure_aggregation": None}
        changes["server"] = config.server.model_copy(update=alone)
        changes["strategy"] = StrategyOptions()
        changes["compression"] = CompressionOptions()
        changes["personalisation"] = PersonalisationOptions()
    return config.model_copy(update=changes)
