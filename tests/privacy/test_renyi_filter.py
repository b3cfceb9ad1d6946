"""The gate against computations of its own: integrals, closed forms, a plain composition."""

from math import inf, log, log1p, sqrt

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.privacy import renyi_filter
from medfusion.privacy.accounting import Events, NoisedSums, composed_epsilon, merged
from medfusion.privacy.plan_costs import Paid, PlanCosts
from medfusion.privacy.renyi_filter import ORDERS, Gate, renyi_divergences

sums = st.builds(
    NoisedSums,
    noise_multiplier=st.floats(0.9, 20.0),
    sample_rate=st.one_of(st.floats(0.01, 0.9), st.just(1.0)),
    count=st.integers(1, 60),
)
plans = st.lists(sums, min_size=1, max_size=3).map(merged)
gates = st.builds(Gate, max_epsilon=st.floats(0.3, 20.0), delta=st.sampled_from([1e-3, 1e-5, 1e-7]))


def integrated_divergence(noise: float, rate: float, order: float) -> float:
    """The larger Renyi divergence between a Gaussian and its sampled shift, by the midpoint rule.

    In the direction of the mixture the integrand's mass lies around z = order at most.
    """
    z = np.linspace(-15 * noise, order + 15 * noise, 400_001)
    base = -(z**2) / (2 * noise**2) - log(noise * sqrt(2 * np.pi))
    loss = np.logaddexp(
        log1p(-rate) if rate < 1 else -inf, log(rate) + (2 * z - 1) / (2 * noise**2)
    )

    def log_integral(values: np.ndarray) -> float:
        return float(np.logaddexp.reduce(values) + log(z[1] - z[0]))

    there = log_integral(base + order * loss) / (order - 1)
    back = log_integral(base + (1 - order) * loss) / (order - 1)
    return max(there, back)


@settings(max_examples=25, deadline=None)
@given(sums)
def test_divergences_equal_the_integrals(event: NoisedSums) -> None:
    found = renyi_divergences((event,))
    for order in (2, 3, 8, 24):
        expected = event.count * integrated_divergence(
            event.noise_multiplier, event.sample_rate, order
        )
        assert found[ORDERS.index(order)] == pytest.approx(expected, rel=1e-4, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(plans, min_size=1, max_size=4), gates)
def test_the_filter_never_allows_what_a_full_renyi_composition_forbids(
    reserved: list[Events], gate: Gate
) -> None:
    """One event at a time, nothing merged, with the best order at the whole of delta."""
    full = RdpAccountant(ORDERS)
    for plan in reserved:
        for event in plan:
            gaussian = GaussianDpEvent(event.noise_multiplier)
            sampled = PoissonSampledDpEvent(event.sample_rate, gaussian)
            for _ in range(event.count):
                full.compose(gaussian if event.sample_rate == 1 else sampled)
    assert full.get_epsilon(gate.delta) <= gate.renyi_epsilon(reserved) + 1e-9


@settings(max_examples=4, deadline=None)
@given(st.lists(plans, min_size=1, max_size=2), gates)
def test_no_rule_grants_less_than_the_tightest_composition(
    reserved: list[Events], gate: Gate
) -> None:
    together = composed_epsilon(merged(e for plan in reserved for e in plan), delta=gate.delta)
    for rule in (gate.renyi_epsilon, gate.basic_epsilon, gate.epsilon):
        assert rule(reserved) >= together * 0.998 - 1e-3


@settings(max_examples=6, deadline=None)
@given(st.lists(plans, min_size=2, max_size=3), gates)
def test_what_is_admitted_was_admitted_by_the_same_rule_before(
    reserved: list[Events], gate: Gate
) -> None:
    """The proof rests on monotone rules: a longer ledger never satisfies one anew."""
    for rule in (gate.renyi_epsilon, gate.basic_epsilon):
        figures = [rule(reserved[:n]) for n in range(1, len(reserved) + 1)]
        assert figures == sorted(figures)


@pytest.mark.parametrize("n", [1, 2, 200])
def test_the_rules_share_delta(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    asked: list[float] = []

    def one(events: Events, *, delta: float) -> float:
        asked.append(delta)
        return 1.0

    monkeypatch.setattr(renyi_filter, "composed_epsilon", one)
    gate = Gate(max_epsilon=2.0, delta=1e-5)
    assert gate.basic_epsilon([(NoisedSums(1.0, 1.0, 1),)] * n) == n
    # Plan i's own share, however many follow: the rule must be monotone.
    assert asked == [gate.delta / (2 * i * (i + 1)) for i in range(1, n + 1)]
    assert sum(asked) < gate.delta / 2


@given(gates)
def test_the_orders_share_the_other_half_of_delta(gate: Gate) -> None:
    orders = gate.order_deltas()
    assert orders.keys() == set(ORDERS)
    assert gate.delta * 0.49 < sum(orders.values()) <= gate.delta / 2


def test_each_order_converts_as_in_canonne_kamath_and_steinke() -> None:
    """The rule's epsilon at one order, put into their formula for delta, gives its delta back."""
    gate = Gate(max_epsilon=8.0, delta=1e-5)
    plan = (NoisedSums(1.0, 1.0, 1),)
    found = gate.renyi_epsilon([plan])
    logs = [
        (a - 1) * (a / 2 - found) - log(a - 1) + a * log1p(-1 / a) - log(gate.order_deltas()[a])
        for a in ORDERS
    ]
    assert min(logs) == pytest.approx(0.0, abs=1e-9)


def costs(noise: float, rounds: int) -> PlanCosts:
    return PlanCosts({"train": Paid(rounds, NoisedSums(noise, 1.0, 1))})


def test_a_single_plan_is_held_to_its_own_epsilon_at_the_whole_delta() -> None:
    plan = costs(1.0, 1).events()
    alone = composed_epsilon(plan, delta=1e-5)
    exact = Gate(max_epsilon=alone, delta=1e-5)
    assert exact.admits([plan])
    assert exact.epsilon([plan]) == alone
    assert not Gate(max_epsilon=alone * 0.999, delta=1e-5).admits([plan])
    tiny = costs(900.0, 1).events()
    assert not exact.admits([plan, tiny])  # alone is alone


def test_of_several_plans_none_is_taken_alone() -> None:
    gate, plan = Gate(max_epsilon=8.0, delta=1e-5), costs(1.0, 1).events()
    several = min(gate.renyi_epsilon([plan, plan]), gate.basic_epsilon([plan, plan]))
    assert gate.epsilon([plan, plan]) == several > gate.epsilon([plan])


def test_what_cannot_be_computed_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(RdpAccountant):
        @property
        def rdp(self) -> np.ndarray:
            return np.where(np.arange(len(ORDERS)) < 2, np.nan, 1.0)

    monkeypatch.setattr("dp_accounting.rdp.RdpAccountant", Lost)
    found = renyi_divergences((NoisedSums(1.2345, 1.0, 1),))  # asked for nowhere else
    assert found.tolist() == [inf, inf, *[1.0] * (len(ORDERS) - 2)]


def test_few_large_plans_pass_by_the_basic_rule_and_many_small_ones_by_a_renyi_rule() -> None:
    gate = Gate(max_epsilon=8.0, delta=1e-5)
    uneven = [(NoisedSums(0.45, 0.01, 5),), (NoisedSums(20.0, 1.0, 1),)]
    assert gate.renyi_epsilon(uneven) > 8.0 > gate.basic_epsilon(uneven)
    even = [(NoisedSums(5.0, 1.0, 1),)] * 12
    assert gate.basic_epsilon(even) > 8.0 > gate.renyi_epsilon(even)
    assert gate.admits(uneven)
    assert gate.admits(even)


def test_the_rounds_that_fit_do_and_one_more_does_not() -> None:
    gate = Gate(max_epsilon=4.0, delta=1e-5)
    reserved = [costs(3.0, 2).events()]
    asked = costs(3.0, 50)
    fit = gate.rounds_that_fit(reserved, asked)
    assert 0 < fit < 50
    assert gate.admits([*reserved, asked.in_rounds(fit).events()])
    assert not gate.admits([*reserved, asked.in_rounds(fit + 1).events()])
    assert gate.rounds_that_fit([], costs(30.0, 5)) == 5
    assert gate.rounds_that_fit([costs(0.9, 1).events()], asked) == 0


def test_nothing_costs_nothing() -> None:
    gate = Gate(max_epsilon=1.0, delta=1e-5)
    assert gate.epsilon([]) == composed_epsilon((), delta=1e-5) == 0
    assert gate.admits([])
