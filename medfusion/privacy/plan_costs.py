"""What a run's plan pays for, release by release: the part of a plan that a ledger keeps."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self, get_args

from medfusion.privacy.accounting import Events, NoisedSums, merged
from medfusion.privacy.plan import DpPlan

ReleaseKind = Literal["select", "train", "evaluate"]


@dataclass(frozen=True)
class Paid:
    """At most ``releases`` releases of a kind, each of which costs ``each``."""

    releases: int
    each: NoisedSums


@dataclass(frozen=True)
class PlanCosts:
    """What a plan pays for, by kind of release."""

    paid: Mapping[ReleaseKind, Paid]

    @classmethod
    def of(cls, plan: DpPlan) -> Self:
        """Return what ``plan`` pays for."""
        step = NoisedSums(plan.noise_multiplier, plan.sample_rate, plan.steps_per_round)
        paid: dict[ReleaseKind, Paid] = {"train": Paid(plan.rounds, step)}
        if plan.selection_noise is not None:
            paid["select"] = Paid(1, NoisedSums(plan.selection_noise, 1.0, 1))
        if plan.metrics_noise is not None:
            metrics = NoisedSums(plan.metrics_noise, 1.0, 1)
            paid["evaluate"] = Paid(plan.metrics_releases, metrics)
        return cls(paid)

    @property
    def rounds(self) -> int:
        """Rounds of training."""
        return self.paid["train"].releases

    def events(self) -> Events:
        """Everything that the plan pays for, merged."""
        return merged(event for kind in self.paid for event in self.of_kind(kind))

    def of_kind(self, kind: ReleaseKind, releases: int | None = None) -> Events:
        """Return ``releases`` releases of one kind, or all that the plan pays for."""
        paid = self.paid[kind]
        each, count = paid.each, paid.releases if releases is None else releases
        return merged([NoisedSums(each.noise_multiplier, each.sample_rate, each.count * count)])

    def in_rounds(self, rounds: int) -> "PlanCosts":
        """Return the same plan with fewer rounds, and no more evaluations than rounds."""
        paid = {
            kind: paid if kind == "select" else Paid(min(paid.releases, rounds), paid.each)
            for kind, paid in self.paid.items()
        }
        return PlanCosts(paid)

    def to_json(self) -> str:
        """Text that `from_json` turns into an equal object; equal costs give equal text."""
        return json.dumps({kind: asdict(paid) for kind, paid in self.paid.items()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return cls(
            {
                kind: Paid(data[kind]["releases"], NoisedSums(**data[kind]["each"]))
                for kind in get_args(ReleaseKind)
                if kind in data
            }
        )
