"""Epsilon of plans beside three independent computations.

    python tests/benchmarks/epsilon.py

``dp-accounting`` composes the plan's events afresh by RDP, ``PRV`` is Opacus' accountant for
the training part alone, ``analytic`` is the exact Gaussian mechanism (Balle and Wang 2018),
which applies where q = 1 and the whole plan is one Gaussian of the composed noise.
"""

import logging
import math
import warnings

from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from medfusion.privacy.accounting import epsilon
from medfusion.privacy.options import PrivacyOptions
from medfusion.privacy.plan import DpPlan, make_plan

DELTA = 1e-5


def rdp(plan: DpPlan) -> float:
    """Upper bound of the whole plan's epsilon by Renyi composition."""
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = GaussianDpEvent(plan.noise_multiplier)
    if plan.sample_rate < 1:
        step = PoissonSampledDpEvent(plan.sample_rate, step)
    accountant.compose(SelfComposedDpEvent(step, plan.steps_per_round * plan.rounds))
    accountant.compose(GaussianDpEvent(plan.selection_noise))
    metrics = GaussianDpEvent(plan.metrics_noise)
    accountant.compose(SelfComposedDpEvent(metrics, plan.metrics_releases))
    return float(accountant.get_epsilon(DELTA))


def prv(plan: DpPlan) -> tuple[float, float]:
    """Epsilon of the training part: Opacus' PRV accountant, and ours."""
    steps = plan.steps_per_round * plan.rounds
    accountant = PRVAccountant()
    accountant.history = [(plan.noise_multiplier, plan.sample_rate, steps)]
    ours = epsilon(
        delta=DELTA,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps=steps,
    )
    return float(accountant.get_epsilon(DELTA)), ours


def analytic(plan: DpPlan) -> float | None:
    """Exact epsilon of the plan's Gaussians composed into one; None where q < 1."""
    if plan.sample_rate < 1:
        return None
    inverse = plan.steps_per_round * plan.rounds / plan.noise_multiplier**2
    inverse += 1 / plan.selection_noise**2 + plan.metrics_releases / plan.metrics_noise**2
    mu = math.sqrt(inverse)

    def excess(value: float) -> float:
        first = norm.cdf(mu / 2 - value / mu)
        return float(first - math.exp(value) * norm.cdf(-mu / 2 - value / mu) - DELTA)

    return float(brentq(excess, 1e-6, 200))


def main() -> None:
    """Print one line for each plan."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # orders that Renyi accounting leaves out
    print("patients batch steps target |  plan  | RDP (upper) | training: PRV, ours | analytic")
    for patients, batch, steps, target in (
        (1400, 64, 220, 8.0),
        (1400, 256, 120, 1.0),
        (420, 64, 70, 8.0),
        (200, 4, 1500, 1.0),
        (15, 16, 20, 8.0),
    ):
        plan = make_plan(
            PrivacyOptions(target_epsilon=target),
            patients_public=patients,
            batch_size=batch,
            steps_per_round=steps // 10,
            rounds=10,
            delta=DELTA,
            selects=True,
            metrics_releases=1,
        )
        reference, ours = prv(plan)
        exact = analytic(plan)
        print(
            f"{patients:8} {batch:5} {steps:5} {target:6.1f} | {plan.epsilon():6.3f} | "
            f"{rdp(plan):11.3f} | {reference:8.3f} {ours:8.3f}   | "
            + (f"{exact:.3f}" if exact else "q < 1")
        )


if __name__ == "__main__":
    main()
