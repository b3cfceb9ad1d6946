"""Epsilon against computations that share no code with ours, and no code with one another."""

from math import erfc, exp, log, sqrt

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant

from medfusion.privacy.accounting import epsilon, solve_decreasing
from medfusion.privacy.options import PrivacyOptions
from medfusion.privacy.plan import DpPlan, make_plan

DELTA = 1e-5


def plan_for(*, patients: int, batch: int, steps: int, rounds: int, epsilon: float) -> DpPlan:
    return make_plan(
        PrivacyOptions(target_epsilon=epsilon),
        patients_public=patients,
        batch_size=batch,
        steps_per_round=steps,
        rounds=rounds,
        delta=DELTA,
        selects=True,
        metrics_releases=2,
    )


def analytic_gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Theorem 8 of Balle & Wang (ICML 2018), solved for epsilon by bisection."""

    def phi(x: float) -> float:
        return erfc(-x / sqrt(2)) / 2  # erf would lose the far tail

    def delta_at(epsilon: float) -> float:
        a, b = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return phi(a - b) - exp(epsilon) * phi(-a - b)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(
    ("patients", "batch", "steps", "rounds", "target"),
    [(1400, 32, 20, 5, 8.0), (79, 32, 3, 20, 8.0), (1400, 64, 22, 3, 1.0), (40, 40, 1, 10, 3.0)],
)
def test_epsilon_equals_dp_accounting_called_release_by_release(
    patients: int, batch: int, steps: int, rounds: int, target: float
) -> None:
    plan = plan_for(patients=patients, batch=batch, steps=steps, rounds=rounds, epsilon=target)
    # Add-or-remove-one, nothing merged: another route to the same figure.
    accountant = PLDAccountant()
    accountant.compose(GaussianDpEvent(plan.selection_noise))
    step = PoissonSampledDpEvent(min(1.0, batch / patients), GaussianDpEvent(plan.noise_multiplier))
    accountant.compose(step, steps * rounds)
    for _ in range(2):
        accountant.compose(GaussianDpEvent(plan.metrics_noise))
    assert plan.epsilon() == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.0, 0.02, 800), (2.5, 0.4, 60), (0.8, 0.01, 2000)]
)
def test_training_epsilon_equals_opacus_prv(sigma: float, rate: float, steps: int) -> None:
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps)]
    theirs = accountant.get_epsilon(DELTA, eps_error=0.01)
    ours = epsilon(delta=DELTA, noise_multiplier=sigma, sample_rate=rate, steps=steps)
    assert ours == pytest.approx(theirs, abs=0.015)  # theirs is an upper bound, by 0.01 at most


@pytest.mark.parametrize("target", [0.1, 1.0, 8.0, 30.0])
def test_epsilon_equals_the_analytic_gaussian_when_everybody_takes_part(target: float) -> None:
    plan = plan_for(patients=50, batch=64, steps=1, rounds=12, epsilon=target)
    assert plan.sample_rate == 1
    precision = 12 / plan.noise_multiplier**2
    precision += 1 / plan.selection_noise**2 + 2 / plan.metrics_noise**2
    expected = analytic_gaussian_epsilon(1 / sqrt(precision), DELTA)
    assert plan.epsilon() == pytest.approx(expected, rel=1e-3)


def test_releases_cost_what_they_say() -> None:
    alone = {"delta": DELTA, "noise_multiplier": 1.0, "sample_rate": 0.01, "steps": 100}
    assert epsilon(**alone, releases=((4.0, 1),)) > epsilon(**alone) + 0.1
    assert epsilon(**alone, releases=((4.0, 3),)) > epsilon(**alone, releases=((4.0, 1),)) + 0.1
    expected = analytic_gaussian_epsilon(4.0 / sqrt(3), DELTA)
    only = epsilon(**(alone | {"steps": 0}), releases=((4.0, 3),))
    assert only == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("target", [0.3, 2.0, 70.0])
@pytest.mark.parametrize("start", [0.5, 3.0, 900.0])
def test_solver_lands_just_below_the_target(target: float, start: float) -> None:
    def function(x: float) -> float:
        return 5 / x + 3 / x**2

    x = solve_decreasing(function, target, low=0.1, high=1000, start=start)
    assert 0.996 * target <= function(x) <= target


def test_solver_returns_the_nearest_end_where_there_is_no_solution() -> None:
    end = solve_decreasing(lambda x: 1 / x, 50, low=0.1, high=1000, start=1)
    assert end == pytest.approx(0.1)
    end = solve_decreasing(lambda x: 1 + 1 / x, 0.5, low=0.1, high=1000, start=1)
    assert log(end) == pytest.approx(log(1000))
