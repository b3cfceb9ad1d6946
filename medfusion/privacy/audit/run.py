"""One canary run with a run's exact plan, and the bound on epsilon that it gives.

The canaries train through `medfusion.training.loop.fit`, as a Node's patients do: its draws,
its per-sample gradients, its clipping, its noise, its denominators, over all of the plan's
rounds. What differs is post-processing, which no claim depends on: plain SGD with one rate, so
that a round's update is the sum of what its steps released.

The model beside the canaries is one linear layer on synthetic numbers. A canary's gradient by
any other model would be zero all the same, so the bound does not depend on it; that per-sample
gradients of a run's own layers are right is proven elsewhere, model by model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medfusion.models.seeding import seeded
from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.audit.bound import Guesses, best_guesses, largest_bound
from medfusion.privacy.audit.canaries import CanaryModel, SyntheticStudies
from medfusion.privacy.audit.keys import AuditKeys
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.randomness import stream
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions

MIN_CANARIES = 20  # fewer refute nothing
_ORDINARY, _WIDTH, _LABELS = 32, 8, 3
_RATE = 1e-3
_PHYSICAL_BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanAudit:
    """What a canary run says of a plan.

    Attributes
    ----------
    claim, delta
        The epsilon under test, and its delta.
    canaries, confidence
        How many there were; the bound is right with this confidence.
    guesses
        The attacker's best guesses; their ``bound`` is the lower bound on epsilon.
    largest
        The bound that guesses without an error would have given.
    replayed
        Which public value gives the noise, in words; None: the attacker found none.
    scores, included
        [m] each: the attacker's score of each canary, in units of the plan's ``max_grad_norm``,
        and whether it took part. They are synthetic, and secrets of nobody.
    """

    claim: float
    delta: float
    canaries: int
    confidence: float
    guesses: Guesses
    largest: float
    replayed: str | None
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]

    @property
    def refuted(self) -> bool:
        """Whether the plan, as executed, breaks its claim; noise that anyone can make does."""
        return self.guesses.bound > self.claim or self.replayed is not None

    @property
    def verdict(self) -> str:
        """``refuted``, ``not refuted``, or ``cannot tell`` where no outcome could refute."""
        if self.refuted:
            return "refuted"
        return "not refuted" if self.largest > self.claim else "cannot tell"


def audit_plan(
    plan: DpPlan,
    *,
    claim: float,
    keys: AuditKeys,
    coins: torch.Generator,
    canaries: int = 1000,
    confidence: float = 0.999,
    on_round: Callable[[], None] | None = None,
) -> PlanAudit:
    """Train canaries under a plan, attack what is released, and bound epsilon from below.

    Parameters
    ----------
    plan
        Taken as it is: rates, steps, rounds, clip and noise.
    claim
        The epsilon that is claimed for the plan at its delta.
    keys
        Where draws and noise come from, and what the attacker knows of that.
    coins
        Decides which canaries take part; independent of ``keys``.
    canaries
        m; half of them take part, on average.
    confidence
        Of the bound.
    on_round
        Called after each trained round.

    Raises
    ------
    ValueError
        If there are fewer than `MIN_CANARIES` canaries.
    """
    if canaries < MIN_CANARIES:
        raise ValueError(f"Expected canaries={canaries} >= {MIN_CANARIES}.")
    included = torch.rand(canaries, dtype=torch.float64, generator=coins) < 0.5
    released = torch.stack(
        list(_updates(plan, _studies(included, keys.seed), keys, keys.private, on_round))
    )
    replayed = _replayable(plan, released[0], keys)
    if replayed is not None:
        released -= torch.stack(list(_replay(plan, canaries, keys, replayed)))
    scores = (released.sum(0) / plan.max_grad_norm).double().numpy()
    return PlanAudit(
        claim=claim,
        delta=plan.delta,
        canaries=canaries,
        confidence=confidence,
        guesses=best_guesses(scores, included.numpy(), delta=plan.delta, confidence=confidence),
        largest=largest_bound(canaries=canaries, delta=plan.delta, confidence=confidence),
        replayed=replayed,
        scores=scores,
        included=included.numpy(),
    )


class _Linear(nn.Module):
    """The model beside the canaries."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(_WIDTH, _LABELS)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.linear(inputs["numbers"])
        return logits


def _studies(included: Tensor, seed: int) -> SyntheticStudies:
    """Return a few ordinary studies of random numbers, and the canaries that take part."""
    generator = stream(seed, "audit", "studies")
    numbers = torch.randn(_ORDINARY, _WIDTH, generator=generator)
    labels = (torch.rand(_ORDINARY, _LABELS, generator=generator) < 0.5).float()
    present = included.nonzero().flatten()
    return SyntheticStudies({"numbers": numbers}, labels, present, canaries=len(included))


def _nobody(canaries: int) -> SyntheticStudies:
    """Return no studies: all that training on them releases is noise."""
    inputs, labels = {"numbers": torch.zeros(0, _WIDTH)}, torch.zeros(0, _LABELS)
    return SyntheticStudies(inputs, labels, torch.arange(0), canaries=canaries)


def _updates(
    plan: DpPlan,
    studies: SyntheticStudies,
    keys: AuditKeys,
    streams: Callable[[int], Keystream],
    on_round: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """Train by the plan; yield what each round released on the canaries' rows, float32 [m].

    The scale is that of the sums over patients: C for each time that a canary was drawn, where
    it follows a quantile the C of that step.
    """
    plan = replace(plan, unit_norm=False)  # rescaling what was released takes nothing back
    with seeded(keys.seed):
        model = CanaryModel(_Linear(), canaries=studies.canaries, max_grad_norm=plan.max_grad_norm)
    options = TrainingOptions(optimizer="sgd", learning_rate=_RATE)
    for number in range(1, plan.rounds + 1):
        model.forget()  # keeps what small steps add up to exact
        fit(
            model,
            studies,
            options=options,
            objective=Multilabel(),
            plan=plan,
            steps=plan.steps_per_round,
            public=keys.public(number),
            private=streams(number),
            device=torch.device("cpu"),
            physical_batch=_PHYSICAL_BATCH,
            precision="float32",
        )
        if on_round is not None:
            on_round()
        table = model.table.weight.detach()
        yield table[: studies.canaries, 0] * (plan.expected_batch / _RATE)


def _replay(plan: DpPlan, canaries: int, keys: AuditKeys, guess: str) -> Iterator[Tensor]:
    """Yield the noise of each round, float32 [m], as a guessed stream would make it."""
    return _updates(plan, _nobody(canaries), keys, lambda number: keys.guess(guess, number))


def _replayable(plan: DpPlan, released: Tensor, keys: AuditKeys) -> str | None:
    """Return the public value whose noise is in the first round's release, None if none is.

    Subtracting the right noise leaves less than there was; any other noise only adds. The truth
    about the canaries is not looked at, so that the attacker may choose by this.
    """
    left = {
        guess: float((released - next(_replay(plan, len(released), keys, guess))).square().sum())
        for guess in keys.guesses()
    }
    best = min(left, key=lambda guess: left[guess])
    return best if left[best] < float(released.square().sum()) else None
