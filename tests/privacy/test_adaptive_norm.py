"""The norm that follows a quantile: what it costs, what one patient moves, where it goes."""

from dataclasses import replace
from math import exp, log, sqrt

import pytest
import torch
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from plans import training_plan
from torch import Tensor, nn

from medfusion.privacy.adaptive_norm import RATE, AdaptiveNorm, split_noise
from medfusion.privacy.dp_sgd import PrivateSteps
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.options import PrivacyOptions
from medfusion.privacy.plan import DpPlan, make_plan

SIZE = 40
SECRET = bytes(range(32))
PLAN = training_plan(SIZE, 1.0, noise=2.0, steps=30, clip_quantile=0.5)


def make_norm(start: float = 1.0, *, seed: int = 0, **changes: float) -> AdaptiveNorm:
    numbers = {"quantile": 0.5, "count_noise": 1e-9, "expected_batch": float(SIZE)}
    keystream = Keystream(SECRET, "count", seed)
    return AdaptiveNorm(start, **(numbers | changes), keystream=keystream)


def moved(norm: AdaptiveNorm, norms: Tensor | None = None) -> float:
    """The share of unclipped patients by which one step changed the norm."""
    before = norm.value
    if norms is not None:
        norm.observe(norms)
    norm.move()
    return 0.5 - log(norm.value / before) / RATE


@pytest.mark.parametrize("noise_multiplier", [0.7, 4.0])
def test_gradient_and_count_together_cost_what_the_plan_pays_for(noise_multiplier: float) -> None:
    """By an accountant that composes both releases, against one of the plan's noise."""
    accountants = PLDAccountant(), PLDAccountant()
    gradient, count = split_noise(noise_multiplier)
    accountants[0].compose(GaussianDpEvent(noise_multiplier))
    accountants[1].compose(GaussianDpEvent(gradient)).compose(GaussianDpEvent(count))
    assert gradient > noise_multiplier
    alone, together = (accountant.get_epsilon(1e-5) for accountant in accountants)
    assert together == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6, float("nan")])
def test_one_patient_more_moves_the_count_by_one_half(length: float) -> None:
    others = torch.linspace(0.1, 3.0, 17)
    with_them = torch.cat([others, torch.tensor([length])])
    change = moved(make_norm(), with_them) - moved(make_norm(), others)
    assert abs(change) * SIZE == pytest.approx(0.5, rel=1e-5)


def test_a_gradient_as_long_as_the_norm_is_not_clipped_and_counts_as_short() -> None:
    assert moved(make_norm(), torch.ones(SIZE)) == pytest.approx(1.0)


def test_a_gradient_that_is_not_finite_counts_as_long() -> None:
    broken = torch.tensor([float("nan"), float("inf")])
    assert moved(make_norm(), broken) == pytest.approx(0.5 - 0.5 * 2 / SIZE)


def test_the_noise_on_the_count_is_as_loud_as_it_says() -> None:
    norm = make_norm(count_noise=3.0, expected_batch=200.0)
    draws = torch.tensor([moved(norm) - 0.5 for _ in range(2000)], dtype=torch.float64)
    expected = 0.5 * 3.0 / 200.0  # sensitivity 1/2
    assert float(draws.std()) == pytest.approx(expected, rel=0.06)
    assert abs(float(draws.mean())) < 4 * expected / sqrt(2000)


def test_the_share_does_not_depend_on_how_many_were_drawn_but_on_how_many_could_be() -> None:
    """Nobody drawn says nothing: the count is 0, as if half of all were short."""
    assert moved(make_norm()) == pytest.approx(0.5)
    few = torch.tensor([0.5, 0.5, 0.5])
    assert moved(make_norm(), few) == pytest.approx(0.5 + 0.5 * 3 / SIZE)


@pytest.mark.parametrize("start", [0.05, 30.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_it_goes_to_the_quantile_of_the_norms(start: float, quantile: float) -> None:
    norms = torch.linspace(1.0, 2.0, SIZE)
    norm = make_norm(start, quantile=quantile)
    for _ in range(150):
        moved(norm, norms)
    assert norm.value == pytest.approx(1.0 + quantile, abs=0.08)


def test_chunks_count_as_one_batch() -> None:
    norms = torch.linspace(0.1, 1.5, SIZE)
    whole, cut = make_norm(), make_norm()
    cut.observe(norms[:7])
    assert moved(cut, norms[7:]) == moved(whole, norms)


def test_noise_cannot_carry_the_norm_away_in_one_step() -> None:
    norm = make_norm(count_noise=1e6)
    for _ in range(20):
        before = norm.value
        norm.move()
        assert exp(-RATE) < norm.value / before < exp(RATE)


class Slopes(nn.Module):
    """Sample j's gradient is j's row."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.linear = nn.Linear(parameters, 1, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.linear(rows)
        return out


def gradients_of_steps(
    rows: Tensor, plan: DpPlan, adaptive: AdaptiveNorm | None, steps: int
) -> list[Tensor]:
    """The noised sums of clipped gradients, [P] each, of steps on all the rows."""
    net, found = Slopes(rows.shape[1]), []

    def look() -> None:
        assert net.linear.weight.grad is not None
        found.append(net.linear.weight.grad.flatten() * plan.expected_batch)

    with PrivateSteps(
        net,
        torch.optim.SGD(net.parameters(), lr=0.0),
        plan,
        keystream=Keystream(SECRET, "noise"),
        physical_batch=16,
        public_losses=lambda count: net(torch.ones(count, rows.shape[1]))[:, 0],
        before_update=look,
        adaptive=adaptive,
    ) as private_steps:
        for _ in range(steps):
            private_steps.step(torch.arange(len(rows)), lambda index: net(rows[index])[:, 0])
    return found


def test_each_step_clips_to_the_norm_as_it_then_is() -> None:
    rows = torch.zeros(SIZE, SIZE)
    rows.fill_diagonal_(5.0)  # each sample has a coordinate of its own
    norm = make_norm(4.0, quantile=0.9)
    reference, expected = make_norm(4.0, quantile=0.9), []
    for _ in range(6):
        expected.append(reference.value)
        moved(reference, torch.full((SIZE,), 5.0))
    assert expected[0] == 4.0 < expected[1] < 5.0
    plan = replace(PLAN, noise_multiplier=1e-9)
    for found, value in zip(gradients_of_steps(rows, plan, norm, 6), expected, strict=True):
        torch.testing.assert_close(found, torch.full((SIZE,), min(value, 5.0)))


def test_the_gradients_get_the_noise_that_their_share_of_the_plan_asks_for() -> None:
    rows = torch.zeros(0, 40_000)  # whose deviation is known to 0.4%
    norm = make_norm(2.0, quantile=0.1)  # which nobody drawn makes smaller
    values = [2.0 * exp(-RATE * 0.4 * step) for step in range(3)]
    for found, value in zip(gradients_of_steps(rows, PLAN, norm, 3), values, strict=True):
        expected = PLAN.noise_multiplier / sqrt(1 - 1 / 16) * value
        assert float(found.std()) == pytest.approx(expected, rel=0.015)
    (fixed,) = gradients_of_steps(rows, PLAN, None, 1)
    assert float(fixed.std()) == pytest.approx(PLAN.noise_multiplier, rel=0.015)


def test_following_a_quantile_costs_no_more_epsilon() -> None:
    plans = [
        make_plan(
            PrivacyOptions(target_epsilon=2.0, clip_quantile=quantile),
            patients_public=400,
            batch_size=400,
            steps_per_round=5,
            rounds=2,
            delta=1e-5,
            selects=False,
            metrics_releases=1,
        )
        for quantile in (None, 0.4)
    ]
    assert [plan.clip_quantile for plan in plans] == [None, 0.4]
    assert plans[0] == replace(plans[1], clip_quantile=None)
