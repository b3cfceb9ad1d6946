"""The arms of an ablation: the full model first, then each with one thing changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medfusion.comparison.arms import Arm, plan_arms
from medfusion.config import RunConfig, parse_value
from medfusion.data.task import Task
from medfusion.models.options import MODALITIES, MedFusionNetOptions
from medfusion.models.registry import modalities_of


@dataclass(frozen=True)
class Part:
    """A part of MedFusionNet, what switches it off, and where it has something to do.

    ``applies`` is given the options of the full model, its modalities and the number of labels.
    """

    overrides: tuple[str, ...]
    applies: Callable[[MedFusionNetOptions, Sequence[str], int], bool]


@dataclass(frozen=True)
class Change:
    """An arm that is not the full model: ``sign`` - takes a part away, + adds an option."""

    name: str
    sign: str
    arm: Arm


PARTS: dict[str, Part] = {
    "thresholds": Part(("selection.method=none",), lambda _, reads, __: "tabular" in reads),
    "attention_stream": Part(
        ("model.attention_stream=false",), lambda model, reads, _: "image" in reads
    ),
    "exchange": Part(
        ("model.exchange=false",),
        lambda model, reads, _: "image" in reads and model.attention_stream,
    ),
    "fpn": Part(("model.fpn=false",), lambda _, reads, __: "image" in reads),
    "label_queries": Part(("model.head=pooled",), lambda *_: True),
    "label_attention": Part(
        ("model.label_attention=false",),
        lambda model, _, labels: model.head == "queries" and labels > 1,
    ),
}


def plan_changes(
    config: Path,
    *,
    overrides: Sequence[str],
    regime: str,
    parts: Sequence[str] | None,
    additions: Sequence[Sequence[str]],
) -> tuple[Arm, list[Change]]:
    """Return the full model's arm and one arm for each part taken away and each option added.

    Parameters
    ----------
    overrides
        ``KEY=VALUE`` settings of every arm.
    parts
        Names of `PARTS` and of modalities; None: all that the model has.
    additions
        For each added arm its ``KEY=VALUE`` settings.

    Raises
    ------
    SystemExit
        If a part is unknown, or an arm would be the full model once more.
    ConfigError
        If the config of an arm is refused.
    """

    def arm_of(changed: Sequence[str]) -> Arm:
        (arm,) = plan_arms(config, overrides=[*overrides, *changed], regimes=[regime])
        settings = {key: parse_value(text) for key, _, text in (o.partition("=") for o in changed)}
        return replace(arm, settings=settings)

    full = arm_of(())
    present = _parts_of(full.config)
    unknown = [name for name in parts or () if name not in present]
    if unknown:
        raise SystemExit(
            f"--parts {','.join(unknown)}: this model has on this cohort: {', '.join(present)}"
        )
    chosen = present if parts is None else {name: present[name] for name in parts}
    changes = [Change(name, "-", arm_of(settings)) for name, settings in chosen.items()]
    changes += [Change(", ".join(settings), "+", arm_of(settings)) for settings in additions]
    for change in changes:
        if change.arm.config == full.config:
            raise SystemExit(f"{change.sign} {change.name}: that is the full model itself")
    return full, changes


def _parts_of(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Return what the full model has and could lose, with the settings that take it away."""
    model = config.model
    if not isinstance(model, MedFusionNetOptions):
        raise SystemExit(f"model.name = {model.name!r}: expected 'medfusion_net'")
    task = Task.load(config.run.task)
    reads = modalities_of(model, task)
    labels = len(task.labels.names)
    found = {
        name: (*part.overrides, *_needing(name, model))
        for name, part in PARTS.items()
        if part.applies(model, reads, labels) and _is_on(name, config)
    }
    for name in MODALITIES if len(reads) > 1 else ():
        if name in reads:
            rest = ", ".join(f'"{other}"' for other in reads if other != name)
            found[name] = (f"model.modalities=[{rest}]",)
    return found


def _needing(part: str, model: MedFusionNetOptions) -> tuple[str, ...]:
    """Return what turns off the options that make no sense without ``part``."""
    masks_labels = part in ("label_queries", "label_attention") and model.masked_labels > 0
    return ("model.masked_labels=0.0",) if masks_labels else ()


def _is_on(name: str, config: RunConfig) -> bool:
    """Whether the full model has the part, rather than an option that turns it off."""
    assert isinstance(config.model, MedFusionNetOptions)
    if name == "thresholds":
        return config.selection.method != "none"
    if name == "label_queries":
        return config.model.head == "queries"
    return bool(getattr(config.model, name))
