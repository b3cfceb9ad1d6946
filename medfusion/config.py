"""A run's ``config.toml``: composes the option classes that live beside what they configure."""

import tomllib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from medfusion.data.selection_options import SelectionOptions
from medfusion.data.task import Kind
from medfusion.errors import ConfigError
from medfusion.evaluation.calibrators import Method
from medfusion.models.options import (
    OF_GENERATED_LAYERS,
    WITH_INIT,
    MedFusionNetOptions,
    ModelOptions,
)
from medfusion.options import FileSchema, Options, asked, read_toml
from medfusion.privacy.options import ClientDpOptions, PrivacyOptions
from medfusion.strategies.rule_names import SiteRuleName
from medfusion.toml_text import to_toml
from medfusion.training.options import TrainingOptions
from medfusion.training.personalisation_options import PersonalisationOptions
from medfusion.training.recipes import with_recipe
from medfusion.transport.compression_options import CompressionOptions
from medfusion.transport.pipeline import illegal_pair
from medfusion.transport.secagg_options import SecureAggregationOptions


def _as_tuple(value: Any) -> Any:
    """Let one name stand for a list of one, as on a command line."""
    return (value,) if isinstance(value, str) else value


Tracker = Literal["tensorboard", "mlflow"]


class RunInfo(Options):
    """Section ``[run]``; ``tracking`` names programs whose files show the rounds as they end."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: Path
    rounds: int = Field(default=20, ge=1)
    seed: int = 0
    tracking: Annotated[tuple[Tracker, ...], BeforeValidator(_as_tuple)] = ()


class SimulationOptions(Options):
    """Section ``[simulation]``: a glob of site folders, relative to the config file."""

    sites: str


class StrategyOptions(Options):
    """Section ``[strategy]``: a strategy's name; other keys are checked against its signature."""

    model_config = ConfigDict(extra="allow")

    name: str = "fedavg"

    @property
    def settings(self) -> dict[str, Any]:
        """The keys beside ``name``."""
        return dict(self.model_extra or {})

    @property
    def site_rule(self) -> SiteRuleName:
        """What sites do for the strategy, beside plain steps."""
        rules: dict[str, SiteRuleName] = {"scaffold": "scaffold", "feddyn": "feddyn"}
        return rules.get(self.name, "none")


class EvaluationOptions(Options):
    """Section ``[evaluation]``: how often the federation's metrics are released, and what follows.

    ``every = k`` evaluates after every k-th round and after the last one, ``every = 0`` only
    after the last. Unset: every round without privacy, only the last one under privacy, where
    each release is paid for.

    The last release also tells of the calibration patients, from whom ``calibration`` names the
    method (`medfusion.evaluation.calibrators`). ``sensitivity`` is the share of positives that
    decisions are to find, ``coverage`` the share of patients whose prediction set is to hold the
    truth. ``subgroups`` are features by which the last release counts test patients apart
    (`medfusion.evaluation.subgroups`).
    """

    every: int | None = Field(default=None, ge=0)
    calibration: Method = "platt"
    sensitivity: float = Field(default=0.9, gt=0, lt=1)
    coverage: float = Field(default=0.9, gt=0, lt=1)
    subgroups: tuple[str, ...] = ()

    def check(self, kind: Kind) -> None:
        """Raise `ConfigError` if an option is set that does nothing for a kind of task."""
        for key in asked(self, *_IDLE_OF_KIND.get(kind, ())):
            value, fits = getattr(self, key), type(self).model_fields[key].default
            if key == "calibration":
                fits = "none"  # which is what happens
            if value != fits:
                raise ConfigError(
                    f"evaluation.{key} = {value!r} does nothing for a task of kind {kind!r}; "
                    f"expected it unset, or {fits!r}"
                )


# A regression tells a number, whose probability is not calibrated; of classes the likeliest is
# told, at no threshold.
_IDLE_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "regression": ("calibration", "sensitivity", "coverage"),
    "multiclass": ("sensitivity",),
}


class ServerOptions(Options):
    """Section ``[server]``.

    Attributes
    ----------
    min_sites
        The quorum.
    round_timeout
        How long a round waits, in seconds.
    ema
        Weight of the past in the running average of the rounds' models, which is then what is
        evaluated and delivered; 0 delivers the last round's model as it is. Sites train from
        the last round's model either way.
    client_dp
        Differential privacy of whole sites, besides that of patients; None: off.
    secure_aggregation
        Masks that hide single sites' updates from the coordinator; None: off.
    """

    min_sites: int = Field(default=2, ge=1)
    round_timeout: float = Field(default=3600.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    client_dp: ClientDpOptions | None = None
    secure_aggregation: SecureAggregationOptions | None = None


# Strategies that divide by how far a site's steps reach, which SGD at a constant rate tells.
_OF_STEPS = ("scaffold", "fednova")


class RunConfig(Options):
    """The whole of ``config.toml``; paths are absolute once loaded."""

    file_schema: FileSchema = 1
    run: RunInfo
    simulation: SimulationOptions | None = None
    model: Annotated[ModelOptions, Field(discriminator="name")] = MedFusionNetOptions()
    selection: SelectionOptions = SelectionOptions()
    training: TrainingOptions = TrainingOptions()
    privacy: PrivacyOptions = PrivacyOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    strategy: StrategyOptions = StrategyOptions()
    server: ServerOptions = ServerOptions()
    compression: CompressionOptions = CompressionOptions()
    personalisation: PersonalisationOptions = PersonalisationOptions()

    @model_validator(mode="before")
    @classmethod
    def _recipe_fills_unset_keys(cls, data: Any) -> Any:
        return with_recipe(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _combinations_are_legal(self) -> Self:
        if self.privacy.enabled and self.strategy.name == "qfedavg":
            raise ValueError(
                "strategy.name = 'qfedavg' needs every site's training loss, which stays at the "
                "site under privacy: expected another strategy, or privacy.enabled = false"
            )
        self._strategy_suits_the_steps()
        if self.training.small_images and self.model.name == "mdf_net":
            raise ValueError(
                f"training.small_images = {self.training.small_images}: model.name = 'mdf_net' "
                "reads images of one size; expected 0 beside it"
            )
        if self.training.small_images and getattr(self.model, "backbone", None) == "vgg":
            raise ValueError(
                f"training.small_images = {self.training.small_images}: model.backbone = 'vgg' "
                "reads images of one size; expected 0 beside it, or model.backbone = 'resnet'"
            )
        init = getattr(self.model, "init", None)
        if self.personalisation.local != "none" and init is not None:
            raise ValueError(
                f"personalisation.local = {self.personalisation.local!r}: what sites keep begins "
                f"as the seed draws it, not as in model.init = {init!r}; expected one of the two"
            )
        wrong = illegal_pair(
            strategy=self.strategy.name,
            selection=self.selection.method,
            masked=self.server.secure_aggregation is not None,
            client_dp=self.server.client_dp is not None,
            compressed=not self.compression.off,
        )
        if wrong is not None:
            raise ValueError(wrong)
        return self

    def _strategy_suits_the_steps(self) -> None:
        name, training = self.strategy.name, self.training
        constant = training.schedule == "constant" and not training.rate_multipliers.given()
        if name in _OF_STEPS and not (training.optimizer == "sgd" and constant):
            raise ValueError(
                f"strategy.name = {name!r} needs to know how far a site's steps reach: expected "
                "training.optimizer = 'sgd', training.schedule = 'constant' and no "
                "training.rate_multipliers"
            )
        if name in _OF_STEPS and self.personalisation.own_steps:
            raise ValueError(
                f"strategy.name = {name!r} counts all steps of a round as those of what sites "
                f"share; expected personalisation.own_steps = 0 beside it"
            )
        own_steps, steps = self.personalisation.own_steps, training.steps
        if steps is not None and own_steps >= steps:
            raise ValueError(
                f"personalisation.own_steps = {own_steps}: expected fewer than training.steps = "
                f"{steps}, which must train what sites share as well"
            )
        if name == "cyclic" and self.server.min_sites > 1:
            raise ValueError(
                "strategy.name = 'cyclic' trains one site in a round: expected "
                f"server.min_sites = 1, found {self.server.min_sites}"
            )
        if self.strategy.site_rule != "none" and training.momentum:
            raise ValueError(
                f"strategy.name = {name!r} corrects each step, and momentum = "
                f"{training.momentum} repeats corrections: expected training.momentum = 0"
            )
        if self.strategy.site_rule != "none" and self.selection.method == "local":
            raise ValueError(
                f"strategy.name = {name!r} reads each site's update as its gradient, also where "
                "selection.method = 'local' lets sites train other features: expected "
                "'federated' or 'none'"
            )

    def evaluation_rounds(self) -> tuple[int, ...]:
        """Return the rounds after which metrics are released; the last one is always among them."""
        every = self.evaluation.every
        if every is None:
            every = 0 if self.privacy.enabled else 1
        regular = range(every, self.run.rounds, every) if every else range(0)
        return (*regular, self.run.rounds)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply ``KEY=VALUE`` overrides, make its paths absolute.

    Raises
    ------
    ConfigError
        Naming the key, what was expected and the nearest valid name.
    """
    data = read_toml(path)
    overridden = {_apply(data, override) for override in overrides}
    _forget_generated_layers(data, overridden)
    folder = path.resolve().parent
    config = RunConfig.parse(data, where=str(path))
    run = config.run.model_copy(update={"task": (folder / config.run.task).resolve()})
    simulation = config.simulation
    if simulation is not None:
        simulation = SimulationOptions(sites=str(folder / simulation.sites))
    model = _with_local_init(config.model, folder)
    return config.model_copy(update={"run": run, "simulation": simulation, "model": model})


def _with_local_init(model: ModelOptions, folder: Path) -> ModelOptions:
    """Make ``init`` absolute, unless it is a name that is no file or folder in ``folder``."""
    if not isinstance(model, WITH_INIT) or model.init is None:
        return model
    path = (folder / model.init).resolve()
    if Path(model.init).name == model.init and not path.exists():
        return model  # a name in torchvision's cache
    return model.model_copy(update={"init": str(path)})


def parse_value(text: str) -> Any:
    """Read a value as TOML does, or else as a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


_NAMED = (["model"], ["strategy"], ["training", "loss"])


def _apply(data: dict[str, Any], override: str) -> str:
    """Set one dotted key in nested dictionaries; another model, strategy or loss starts afresh.

    Returns the key.
    """
    key, separator, text = override.partition("=")
    key = key.strip()
    *sections, last = key.split(".")
    if not separator or not last or not all(sections):
        raise ConfigError(f"--set {override}: expected section.key=value")
    table = data
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section!r} is a value, not a section")
    value = parse_value(text.strip())
    if last == "name" and sections in _NAMED and table.get("name") != value:
        table.clear()  # the other keys were the options of another model, strategy or loss
    table[last] = value
    return key


def _forget_generated_layers(data: dict[str, Any], overridden: Set[str]) -> None:
    """Where overrides chose another fusion, drop what the file says of HyperFusion's layers."""
    if "model.fusion" not in overridden or "model" in overridden:
        return  # the file's fusion, or nothing of the file's
    model = data["model"]
    if model.get("fusion") != "hyperfusion":
        for key in OF_GENERATED_LAYERS:
            if f"model.{key}" not in overridden:
                model.pop(key, None)


def config_text(config: RunConfig) -> str:
    """Write a config so that `load_config` reads an equal one."""
    return to_toml(config.model_dump(mode="json", exclude_none=True))
