r"""The gate of a site's ledger: which plans a site may still run, and why that is private.

A coordinator chooses each plan after it has seen what earlier plans released, and may let
plans run side by side. An epsilon computed for all of them together by privacy loss
distributions does not hold then: it takes for granted that parameters were fixed in advance.

**Claim.** With ``max_epsilon`` = E and ``delta`` = D, everything that the plans of a ledger
release is (E, D)-differentially private (one patient's record zeroed out), however plans,
models and their order were chosen from earlier releases.

**Rules.** A plan is the multiset of its events; it is reserved whole before its first release.
With n plans in the order of their reservation, each rule looks at all of them:

* *Renyi(a)*, for each order a in `ORDERS`: with R the sum of all events' Renyi divergences of
  order a, ``R + log(1 - 1/a) - log(a * d) / (a - 1) <= E``. Its d is D / 4 for the order that
  suits E and D best, D / 8 for the next, and so on: they sum to less than D / 2.
* *Basic*: the sum over i of epsilon_i, plan i's own epsilon at
  delta_i = D / (2 * i * (i + 1)), is at most E. These delta_i sum to less than D / 2.
* *Alone*: n = 1, and the plan's epsilon at D is at most E.

The gate admits a plan if some rule holds with it. (E and D are the site's own; they are taken
to be set without looking at releases. Changed ones are a new claim about all plans.)

**Proof.**

1. *Each rule k but Alone is a valid filter with failure probability d_k.* Let a coordinator be
   held to rule k. Renyi(a): whatever was released before, a release's conditional divergence is
   at most its event's, and the events released never exceed the events reserved, so that the
   sum of conditional divergences is at most R on every path; then the whole view has divergence
   at most R ([1]_ theorem 3.1, [2]_ theorem 1), which gives (E, d) ([3]_ proposition 12), in
   both directions. Basic: a plan's parameters are fixed at its reservation, so that it is an
   interactive (epsilon_i, delta_i)-private mechanism ([4]_, computed as an upper bound). Such
   a mechanism is interactive post-processing of randomised response with these parameters
   ([5]_, [6]_), drawn at the reservation: plans that interleave become a sequence, to which the
   basic filter of [7]_ (section 4) applies.
2. *Any of these rules may admit.* They are monotone: sums only grow, and delta_i hangs on i
   alone, so a rule that holds for the final ledger held for every earlier one. Let A_k be the
   views whose final ledger satisfies rule k, and no rule before it in some fixed order. On A_k
   the interaction is the same, draw for draw, as one held to rule k. For every set S of views
   P(S and A_k) <= exp(E) Q(S and A_k) + d_k by step 1; the A_k cover all views, and summing
   over k gives P(S) <= exp(E) Q(S) + sum(d_k), with sum(d_k) <= D.
3. *Alone costs no further delta.* The first plan is chosen before anything was released. If it
   satisfies a rule of step 2, Alone never decides. If it satisfies none, no larger ledger does
   (monotone): the first plan is the only one ever, its parameters were fixed in advance, and
   its own epsilon at D is the claim. Which case holds does not depend on any patient.

References
----------
.. [1] Feldman and Zrnic, "Individual privacy accounting via a Renyi filter", NeurIPS 2021.
.. [2] Lecuyer, "Practical privacy filters and odometers with Renyi differential privacy",
   2021 (arXiv 2103.01379).
.. [3] Canonne, Kamath and Steinke, "The discrete Gaussian", 2020 (arXiv 2004.00010v4).
.. [4] Zhu, Dong and Wang, "Optimal accounting of differential privacy via characteristic
   function", AISTATS 2022 (dominating pairs compose adaptively).
.. [5] Lyu, "Composition theorems for interactive differential privacy", NeurIPS 2022.
.. [6] Vadhan and Zhang, "Concurrent composition theorems for differential privacy", STOC 2023.
.. [7] Rogers, Roth, Ullman and Vadhan, "Privacy odometers and filters", NeurIPS 2016.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from medfusion.errors import FederationError
from medfusion.privacy.accounting import Events, composed_epsilon, merged
from medfusion.privacy.plan_costs import PlanCosts

# Whole numbers, at which the divergence of sampled Gaussians is a finite sum. Where budgets of
# 0.5 to 20 run out the best order lies between 2 and 50.
ORDERS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64)


@lru_cache(maxsize=512)
def renyi_divergences(events: Events) -> NDArray[np.float64]:
    """Return the Renyi divergences of a composition at each of `ORDERS`, [len(ORDERS)].

    The relation is that of `medfusion.privacy.accounting.epsilon`; the divergence is the larger
    of the two directions.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    for event in events:
        accountant.compose(event.dp_event())
    # What cannot be computed is no bound.
    divergences = np.nan_to_num(np.array(accountant.rdp, dtype=np.float64), nan=inf, posinf=inf)
    divergences.flags.writeable = False  # it is kept
    return divergences


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A site's ceiling. Plans are given in the order in which they were reserved."""

    max_epsilon: float
    delta: float

    def admits(self, plans: Sequence[Events]) -> bool:
        """Whether a ledger may hold all of ``plans``."""
        return (
            not plans
            or (len(plans) == 1 and self._alone(plans[0]) <= self.max_epsilon)
            or self.renyi_epsilon(plans) <= self.max_epsilon
            or self.basic_epsilon(plans) <= self.max_epsilon
        )

    def require(self, plans: Sequence[Events], asked: PlanCosts) -> None:
        """Refuse a plan that does not fit beside ``plans``, saying what would.

        Raises
        ------
        FederationError
        """
        if self.admits([*plans, asked.events()]):
            return
        spent = self.epsilon(plans)
        fit = self.rounds_that_fit(plans, asked)
        raise FederationError(
            f"the run's plan does not fit: epsilon {spent:.3g} of {self.max_epsilon:g} is "
            f"reserved, {max(self.max_epsilon - spent, 0):.3g} is left (delta {self.delta:g}); "
            f"with this noise {fit} of its {asked.rounds} rounds fit. Lower "
            "privacy.target_epsilon or run.rounds"
        )

    def epsilon(self, plans: Sequence[Events]) -> float:
        """Return the least epsilon that a rule grants to ``plans`` by themselves."""
        if not plans:
            return 0.0
        several = min(self.renyi_epsilon(plans), self.basic_epsilon(plans))
        return min(several, self._alone(plans[0])) if len(plans) == 1 else several

    def rounds_that_fit(self, plans: Sequence[Events], asked: PlanCosts) -> int:
        """Return how many rounds of ``asked``, with its noise, fit beside ``plans``."""
        low, high = 0, asked.rounds + 1  # low fits (or is 0), high does not
        while high - low > 1:
            middle = (low + high) // 2
            if self.admits([*plans, asked.in_rounds(middle).events()]):
                low = middle
            else:
                high = middle
        return low

    def renyi_epsilon(self, plans: Sequence[Events]) -> float:
        """Return the least epsilon that a Renyi rule grants."""
        total = renyi_divergences(merged(event for plan in plans for event in plan))
        deltas = self.order_deltas()
        return max(
            0.0,
            min(
                float(divergence) + log1p(-1 / order) - log(order * deltas[order]) / (order - 1)
                for order, divergence in zip(ORDERS, total, strict=True)
            ),
        )

    def order_deltas(self) -> dict[int, float]:
        """Return each order's share of delta: half of what is left, nearest order first.

        Near to the order at which a Gaussian mechanism of (max_epsilon, delta) is bounded best.
        """
        tail = log(1 / self.delta)
        best = 1 + sqrt(tail) / (sqrt(tail + self.max_epsilon) - sqrt(tail))
        nearest = sorted(ORDERS, key=lambda order: abs(log((order - 1) / (best - 1))))
        return {order: self.delta / 2 ** (rank + 2) for rank, order in enumerate(nearest)}

    def basic_epsilon(self, plans: Sequence[Events]) -> float:
        """Return the sum of the plans' own epsilons."""
        return sum(
            composed_epsilon(plan, delta=self.delta / (2 * i * (i + 1)))
            for i, plan in enumerate(plans, start=1)
        )

    def _alone(self, plan: Events) -> float:
        return composed_epsilon(plan, delta=self.delta)
