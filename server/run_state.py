"""What a run is given, what it has done so far, and what it leaves."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from medfusion.config import RunConfig
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection
from medfusion.evaluation.held_out_parts import HeldOut, held_out_of
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.subgroups import attributes_of
from medfusion.models.initial_weights import InitialWeights
from medfusion.objectives.registry import loss_of
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.run_plan import run_plan
from medfusion.transport.requests import RunSettings, SiteDescription
from server.admitted import Admitted
from server.exchange import PATIENCE_SECONDS
from server.receipts import Receipts
from server.roster import Roster

SUMMARY = "summary.json"  # written last: a run folder that has it is finished

Histograms = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class RunContext:
    """What a run is given.

    Attributes
    ----------
    plans
        The sites' privacy plans by name; empty without privacy.
    receipts
        What the sites' ledgers were seen to hold.
    folder
        The run folder.
    simulated
        All data are the researcher's own: wrong ones stop the run, to be mended at once.
    signature
        The coordinator's, of this run's `run_content`; None if nobody signed it.
    admitted
        Which node is which site.
    """

    grid: Grid
    config: RunConfig
    task: Task
    roster: Roster
    plans: dict[str, DpPlan]
    receipts: Receipts
    folder: Path
    simulated: bool
    signature: str | None
    admitted: Admitted

    def held_out(self, number: int) -> HeldOut:
        """Return what the release after a round counts."""
        attributes = attributes_of(self.config.evaluation.subgroups, self.task)
        return held_out_of(number, rounds=self.config.run.rounds, attributes=attributes)

    @property
    def last_sensitivity(self) -> float:
        """The sensitivity of what the last round releases, which results are made from."""
        last = self.held_out(self.config.run.rounds)
        return last.sensitivity(measures_of(self.task))

    @property
    def patience(self) -> float:
        """Seconds of silence before a site is asked whether it has lost its message."""
        return math.inf if self.simulated else PATIENCE_SECONDS

    def plan_for(self, site: SiteDescription) -> tuple[str, ...]:
        """Note what a site's part costs in privacy, if it does; return the plan's warnings."""
        plan = run_plan(
            run_settings(self.config, self.task),
            self.task,
            patients_public=site.patients_public,
            delta=site.delta,
        )
        if plan is None:
            return ()
        self.plans[site.site] = plan
        return tuple(plan.warnings)


def run_settings(config: RunConfig, task: Task) -> RunSettings:
    """Return what the run asks of every site; equal configs have equal run ids.

    Raises
    ------
    ConfigError
        If the loss, the subgroups or another option of ``[evaluation]`` do not go with the task.
    """
    parts: dict[str, Any] = {
        "seed": config.run.seed,
        "rounds": config.run.rounds,
        "evaluations": len(config.evaluation_rounds()),
        "task_sha256": task.sha256,
        "model": config.model,
        "selection": config.selection,
        "training": config.training,
        "privacy": config.privacy,
        "report_loss": config.strategy.name == "qfedavg",
        "site_rule": config.strategy.site_rule,
        "secure_aggregation": config.server.secure_aggregation,
        "compression": config.compression,
        "personalisation": config.personalisation,
        "subgroups": config.evaluation.subgroups,
    }
    loss_of(task, config.training.loss)
    attributes_of(config.evaluation.subgroups, task)
    config.evaluation.check(task.task.kind)
    draft = RunSettings(run_id=config.run.name, **parts)
    # What the coordinator does with the replies decides what it asks next, or what it evaluates.
    ours: dict[str, Any] = {"strategy": config.strategy.model_dump(), "ema": config.server.ema}
    if config.server.client_dp is not None:
        ours["client_dp"] = config.server.client_dp.model_dump()
    content = draft.model_dump_json() + json.dumps(ours, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return draft.model_copy(update={"run_id": f"{config.run.name}-{digest}"})


@dataclass
class Cost:
    """Time and traffic of a part of a run."""

    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, other: "Cost") -> None:
        """Count another part as well."""
        self.seconds = round(self.seconds + other.seconds, 4)
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down


@dataclass
class Progress:
    """What a run has done so far; ``cost`` is that of all exchanges, not of the rounds alone.

    ``histograms`` is what the sites released last of their test patients, ``calibration`` what the
    last round's release told of the calibration patients, ``subgroups`` what it told of groups of
    test patients [G, ...], by name;
    ``selected`` names the sites whose histograms the selection was made from; ``sites`` are the
    public facts, but for the task, of all sites that took part so far; ``counted`` is the last
    round in which a site's update counted, by name; ``pending`` is the line of a round that is
    trained and not evaluated yet.
    """

    selection: Selection | None = None
    selected: list[str] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    histograms: Histograms = field(default_factory=dict)
    calibration: Histograms = field(default_factory=dict)
    subgroups: Histograms = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    pending: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns into an equal object."""
        return {
            "selection": self.selection.to_json() if self.selection else None,
            "selected": self.selected,
            "rounds": self.rounds,
            "histograms": {name: array.tolist() for name, array in self.histograms.items()},
            "calibration": {name: array.tolist() for name, array in self.calibration.items()},
            "subgroups": {name: array.tolist() for name, array in self.subgroups.items()},
            "cost": asdict(self.cost),
            "sites": self.sites,
            "counted": self.counted,
            "pending": self.pending,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], task: Task) -> Self:
        """Read what a checkpoint holds."""
        chosen = data["selection"]
        return cls(
            selection=Selection.from_json(chosen, task) if chosen else None,
            selected=data.get("selected", []),
            rounds=data["rounds"],
            histograms={name: np.array(rows) for name, rows in data["histograms"].items()},
            calibration={n: np.array(rows) for n, rows in data.get("calibration", {}).items()},
            subgroups={n: np.array(rows) for n, rows in data.get("subgroups", {}).items()},
            cost=Cost(**data["cost"]),
            sites=data.get("sites", {}),
            counted=data.get("counted", {}),
            pending=data.get("pending"),
        )


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: the model, what it needs to be used, and what was measured.

    ``initial_weights`` is None if the run drew all of them; ``client_dp`` is what the privacy of
    whole sites cost, None without; ``unshared`` what each site keeps for itself, as all began.
    """

    arrays: ArrayRecord
    frozen_sha256: str
    initial_weights: InitialWeights | None
    progress: Progress
    client_dp: dict[str, Any] | None = None
    unshared: ArrayRecord = field(default_factory=ArrayRecord)
