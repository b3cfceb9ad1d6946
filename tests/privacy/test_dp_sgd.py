"""What one patient adds to a private step, and the noise on top.

B samples, P parameters in one vector, C the clipping norm.
"""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from private_steps import (
    CLIP,
    SAMPLES,
    everybody,
    gradient_of_step,
    make_data,
    make_losses,
    make_net,
    make_plan,
    public_losses,
)
from torch import Tensor, nn

from medfusion.privacy.dp_sgd import SUM_SLACK, PrivateSteps
from medfusion.privacy.gaussian_noise import make_grid, noised
from medfusion.privacy.keystream import Keystream

pytestmark = pytest.mark.usefixtures("one_thread", "each_engine")


def test_sum_equals_a_loop_that_clips_one_sample_at_a_time() -> None:
    net, (x, y) = make_net(), make_data()
    losses = make_losses(net, x, y)
    total, clipped = 0.0, 0
    for j in range(SAMPLES):
        wanted = [p for n, p in net.named_parameters() if not n.startswith("unused")]
        parts = torch.autograd.grad(losses(torch.tensor([j])).sum(), wanted)
        gradient = torch.cat([*(part.flatten() for part in parts), torch.zeros(12)])
        norm = float(gradient.norm())
        clipped += norm > CLIP
        total = total + gradient * min(1.0, CLIP / norm)
    assert 2 < clipped < SAMPLES - 2
    found = gradient_of_step(net, losses, everybody())
    assert float((found - total).norm()) < 1e-5 * float(total.norm())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_patient_adds_at_most_the_clipping_norm(bfloat16: bool, scale: float) -> None:
    net, (x, y) = make_net(), make_data(scale=scale)
    losses = make_losses(net, x, y, bfloat16=bfloat16)
    norms = []
    for j in range(SAMPLES):
        alone = gradient_of_step(net, losses, torch.tensor([j]))
        norms.append(float(alone.double().norm()))
    assert max(norms) <= CLIP * (1 + 1e-6)
    assert max(norms) > CLIP * (1 - 1e-4)


@pytest.mark.parametrize("physical_batch", [1, 4, 32])
def test_zeroing_a_patient_moves_the_sum_by_at_most_the_clipping_norm(physical_batch: int) -> None:
    net, (x, y) = make_net(), make_data(scale=1e4)
    index = everybody()[-7:]
    whole = gradient_of_step(net, make_losses(net, x, y), index, physical_batch=physical_batch)
    for j in index:
        empty = y.clone()
        empty[j] = 0  # the patient's loss, and with it the contribution, vanishes
        losses = make_losses(net, x, empty)
        rest = gradient_of_step(net, losses, index, physical_batch=physical_batch)
        assert float((whole - rest).double().norm()) <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_patient_with_a_boundless_gradient_adds_nothing(bad: float) -> None:
    net, (x, y) = make_net(), make_data()
    y[3] = bad
    losses = make_losses(net, x, y)
    rest = torch.cat([everybody()[:3], everybody()[4:]])
    found = gradient_of_step(net, losses, everybody())
    assert torch.isfinite(found).all()
    expected = gradient_of_step(net, losses, rest)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("physical_batch", [1, 3, 7])
def test_physical_batches_do_not_change_the_step(physical_batch: int) -> None:
    net, (x, y) = make_net(), make_data()
    losses, plan = make_losses(net, x, y), make_plan(noise_multiplier=0.5)
    whole = gradient_of_step(net, losses, everybody(), plan=plan)
    cut = gradient_of_step(net, losses, everybody(), plan=plan, physical_batch=physical_batch)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drawn", [0, 5])
def test_noise_has_the_planned_size_on_every_parameter(drawn: int) -> None:
    net, (x, y) = make_net(), make_data()
    losses, plan = make_losses(net, x, y), make_plan(noise_multiplier=1.7)
    index = everybody()[:drawn]
    signal = gradient_of_step(net, losses, index)
    noise = torch.stack(
        [gradient_of_step(net, losses, index, plan=plan, seed=s) - signal for s in range(300)]
    )
    sigma, draws = 1.7 * (1 + SUM_SLACK) * CLIP, len(noise)
    each = noise.double().std(dim=0)
    assert float((each / sigma - 1).abs().max()) < 5 / sqrt(2 * draws)
    assert abs(float(noise.double().std()) / sigma - 1) < 4.5 / sqrt(2 * noise.numel())
    assert abs(float(noise.double().mean())) < 4.5 * sigma / sqrt(noise.numel())


def test_noise_is_one_release_on_the_grid_of_all_parameters() -> None:
    net, plan = make_net(), replace(make_plan(noise_multiplier=1.7), expected_batch=1.0)
    size = sum(p.numel() for p in net.parameters())
    found = gradient_of_step(net, make_losses(net, *make_data()), torch.empty(0).long(), plan=plan)
    sizes = {"sensitivity": (1 + SUM_SLACK) * CLIP, "noise_multiplier": 1.7}
    released = noised(
        torch.zeros(size).double().numpy(), **sizes, keystream=Keystream(bytes(32), 0)
    )
    assert torch.equal(found, torch.from_numpy(released).float())
    grid = make_grid(coordinates=size, **sizes)
    assert 1.7 * CLIP < grid.sigma < 1.7 * CLIP * 1.003


def test_sums_over_pieces_keep_what_float32_would_drop() -> None:
    """One sample of 2^25 and four of 1: their float32 sum, one by one, is 2^25."""
    net = nn.Linear(1, 1, bias=False)
    x = torch.tensor([[2.0**25], [1.0], [1.0], [1.0], [1.0]])
    plan = replace(make_plan(clip=1e9), expected_batch=1.0)
    losses = make_losses(net, x, torch.ones(5, 1))
    found = gradient_of_step(
        net,
        losses,
        torch.arange(5),
        plan=plan,
        physical_batch=1,
        public=lambda rows: losses(torch.arange(rows)),
    )
    assert found.tolist() == [2.0**25 + 4]


def test_clipping_leaves_nothing_that_a_step_without_noise_could_take() -> None:
    net = make_net()
    before = [p.detach().clone() for p in net.parameters()]
    losses = make_losses(net, *make_data())
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with PrivateSteps(
        net,
        optimizer,
        make_plan(),
        keystream=Keystream(bytes(32)),
        physical_batch=4,
        public_losses=public_losses(net),
    ) as steps:
        steps._clipper.clip(lambda: losses(everybody()))
        optimizer.step()  # finds no gradients
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_two_steps_have_different_noise() -> None:
    net = make_net()
    seen: list[Tensor] = []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with PrivateSteps(
        net,
        optimizer,
        make_plan(1.0),
        keystream=Keystream(bytes(32)),
        physical_batch=4,
        public_losses=public_losses(net),
        before_update=lambda: seen.append(net.twice.weight.grad.flatten().clone()),
    ) as steps:
        for _ in range(2):
            steps.step(torch.empty(0, dtype=torch.int64), make_losses(net, *make_data()))
    assert abs(float(torch.corrcoef(torch.stack(seen))[0, 1])) < 4.5 / sqrt(256)


def test_empty_batch_is_a_step_of_noise_without_a_forward_pass() -> None:
    net, plan = make_net(), make_plan(noise_multiplier=1.0)
    before = [p.detach().clone() for p in net.parameters()]

    def losses(index: Tensor) -> Tensor:
        raise AssertionError("nothing to compute")

    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with PrivateSteps(
        net,
        optimizer,
        plan,
        keystream=Keystream(bytes(32)),
        physical_batch=4,
        public_losses=public_losses(net),
    ) as steps:
        loss = steps.step(torch.empty(0, dtype=torch.int64), losses)
    assert float(loss) == 0
    for old, new in zip(before, net.parameters(), strict=True):
        assert torch.all(old != new)


def test_losses_are_summed_over_the_drawn() -> None:
    net, (x, y) = make_net(), make_data()
    losses = make_losses(net, x, y)
    expected = losses(everybody()).sum().item()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with PrivateSteps(
        net,
        optimizer,
        make_plan(),
        keystream=Keystream(bytes(32)),
        physical_batch=4,
        public_losses=public_losses(net),
    ) as steps:
        assert float(steps.step(everybody(), losses)) == pytest.approx(expected, rel=1e-5)
