"""What a ledger keeps of a plan costs what the plan says, for random plans."""

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.privacy.accounting import NoisedSums, composed_epsilon
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.plan_costs import PlanCosts

DELTA = 1e-5


@st.composite
def plans(draw: st.DrawFn) -> DpPlan:
    noise = st.floats(3.0, 20.0)
    patients, batch = draw(st.integers(20, 500)), draw(st.integers(4, 600))
    rate = min(1.0, batch / patients)
    evaluations = draw(st.integers(0, 3))
    return DpPlan(
        patients_public=patients,
        delta=DELTA,
        sample_rate=rate,
        expected_batch=rate * patients,
        steps_per_round=draw(st.integers(1, 4)),
        rounds=draw(st.integers(1, 5)),
        max_grad_norm=1.0,
        noise_multiplier=draw(noise),
        selection_noise=draw(st.one_of(st.none(), noise)),
        metrics_noise=draw(noise) if evaluations else None,
        metrics_releases=evaluations,
    )


@settings(max_examples=5, deadline=None)
@given(plans())
def test_epsilon_equals_dp_accounting_called_release_by_release(plan: DpPlan) -> None:
    accountant = PLDAccountant()  # add-or-remove-one, nothing merged: another route
    if plan.selection_noise is not None:
        accountant.compose(GaussianDpEvent(plan.selection_noise))
    step = PoissonSampledDpEvent(plan.sample_rate, GaussianDpEvent(plan.noise_multiplier))
    for _ in range(plan.rounds * plan.steps_per_round):
        accountant.compose(step)
    for _ in range(plan.metrics_releases):
        accountant.compose(GaussianDpEvent(plan.metrics_noise))
    kept = PlanCosts.from_json(PlanCosts.of(plan).to_json())
    found = composed_epsilon(kept.events(), delta=DELTA)
    assert found == plan.epsilon()
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=5e-3, abs=2e-3)


@settings(max_examples=50, deadline=None)
@given(plans())
def test_the_whole_is_what_its_releases_sum_to(plan: DpPlan) -> None:
    costs = PlanCosts.of(plan)
    paid = {kind: (paid.releases, paid.each.count) for kind, paid in costs.paid.items()}
    expected = {"train": (plan.rounds, plan.steps_per_round)}
    if plan.selection_noise is not None:
        expected["select"] = (1, 1)
    if plan.metrics_releases:
        expected["evaluate"] = (plan.metrics_releases, 1)
    assert paid == expected
    assert sum(event.count for event in costs.events()) == sum(a * b for a, b in paid.values())
    assert costs.in_rounds(plan.rounds) == costs or plan.metrics_releases > plan.rounds


def test_each_release_keeps_its_own_noise_and_count() -> None:
    plan = DpPlan(
        patients_public=100,
        delta=DELTA,
        sample_rate=0.1,
        expected_batch=10.0,
        steps_per_round=3,
        rounds=4,
        max_grad_norm=1.0,
        noise_multiplier=3.0,
        selection_noise=7.0,
        metrics_noise=9.0,
        metrics_releases=2,
    )
    costs = PlanCosts.of(plan)

    def events(steps: int, evaluations: int) -> tuple[NoisedSums, ...]:
        return (
            NoisedSums(3.0, 0.1, steps),
            NoisedSums(7.0, 1.0, 1),
            NoisedSums(9.0, 1.0, evaluations),
        )

    assert costs.rounds == 4
    assert costs.events() == events(12, 2)
    assert costs.in_rounds(3).events() == events(9, 2)
    assert costs.in_rounds(1).events() == events(3, 1)
    assert costs.of_kind("train", 2) == (NoisedSums(3.0, 0.1, 6),)
    assert PlanCosts.from_json(costs.to_json()) == costs
