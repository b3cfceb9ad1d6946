"""What one patient adds to a private step, and the noise on top.

B samples, P parameters in one vector, C the clipping norm.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from math import sqrt
from typing import Any, ClassVar

import pytest
import torch
from plans import training_plan
from torch import Tensor, nn
from torch.nn import functional

from medfusion.errors import FederationError
from medfusion.privacy import dp_sgd
from medfusion.privacy.clipping import Clipper
from medfusion.privacy.dp_sgd import SUM_SLACK, PrivateSteps
from medfusion.privacy.gaussian_noise import make_grid, noised
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.opacus_hooks import OpacusHooks
from medfusion.privacy.plan import DpPlan

SAMPLES = 11  # equals no other dimension below
CLIP = 0.3
Losses = Callable[[Tensor], Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, params=["book_keeping", "opacus"])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken where there is a rule for every layer, then what is taken elsewhere."""
    if request.param == "opacus":
        monkeypatch.setattr(dp_sgd, "engine_for", OpacusHooks)


class Net(nn.Module):
    """Smooth, with a convolution, a norm, a layer used twice and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)
        self.unused = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.conv(x)))
        h = functional.avg_pool2d(h, 3).flatten(1)
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(h)))))


def make_net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def make_data(seed: int = 1, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 1, 6, 6, generator=generator)
    # Sizes from far below to far above the clipping norm.
    y = (
        scale
        * torch.randn(SAMPLES, 3, generator=generator)
        * torch.logspace(-3, 2, SAMPLES)[:, None]
    )
    return x, y


def make_losses(net: nn.Module, x: Tensor, y: Tensor, *, bfloat16: bool = False) -> Losses:
    def losses(index: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            out = net(x[index])
        return (out.float() * y[index]).sum(1)

    return losses


def make_plan(noise_multiplier: float = 1e-20, clip: float = CLIP) -> DpPlan:
    return training_plan(40, 0.25, noise=noise_multiplier, clip=clip)


def gradient_of_step(
    net: nn.Module,
    losses: Losses,
    index: Tensor,
    *,
    plan: DpPlan | None = None,
    physical_batch: int = 32,
    seed: int = 0,
    public: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Return [P]: the step's (noised) sum of clipped gradients; weights stay as they are."""
    plan = plan or make_plan()
    found: list[Tensor] = []

    def look() -> None:
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]))

    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.0)
    with PrivateSteps(
        net,
        optimizer,
        plan,
        keystream=Keystream(bytes(32), seed),
        physical_batch=physical_batch,
        public_losses=public or public_losses(net),
        before_update=look,
    ) as steps:
        steps.step(index, losses)
    assert len(found) == 1
    return found[0] * plan.expected_batch


def public_losses(net: nn.Module) -> Callable[[int], Tensor]:
    """The losses of samples that are nobody's, as `PrivateSteps` asks for them."""
    x, y = make_data(seed=9)
    return lambda rows: make_losses(net, x, y)(torch.arange(rows))


def everybody() -> Tensor:
    return torch.arange(SAMPLES)


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


class FailsBackwards(torch.autograd.Function):
    """Identity that runs out of memory on the way back, once, in a large enough pass."""

    failures: ClassVar[list[int]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if len(gradient) > 3:
            FailsBackwards.failures.append(len(gradient))
            raise torch.OutOfMemoryError
        return gradient


@pytest.mark.parametrize("backwards", [False, True])
def test_running_out_of_memory_halves_the_physical_batch_only(backwards: bool) -> None:
    net, (x, y) = make_net(), make_data()
    calm = make_losses(net, x, y)
    FailsBackwards.failures = []

    def losses(index: Tensor) -> Tensor:
        if not backwards:
            if len(index) > 3:
                FailsBackwards.failures.append(len(index))
                raise torch.OutOfMemoryError
            return calm(index)
        h = functional.avg_pool2d(torch.tanh(net.norm(net.conv(x[index]))), 3).flatten(1)
        h = FailsBackwards.apply(torch.tanh(net.twice(h)))  # between the uses of one layer
        return (net.head(torch.tanh(net.twice(h))) * y[index]).sum(1)

    plan = make_plan(noise_multiplier=0.5)
    expected = gradient_of_step(net, calm, everybody(), plan=plan)
    found = gradient_of_step(net, losses, everybody(), plan=plan, physical_batch=16)
    assert FailsBackwards.failures == [11, 8, 4]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    def losses(index: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(FederationError, match="GPU memory"):
        gradient_of_step(make_net(), losses, everybody())


def traces(net: nn.Module) -> list[str]:
    """Name all that Opacus and we may have left on a model."""
    fresh = set(nn.Linear(1, 1).__dict__)
    found = [name for m in net.modules() for name in set(m.__dict__) - fresh]
    found += [name for p in net.parameters() for name in p.__dict__]
    hooks = [(m._forward_hooks, m._backward_hooks, m._backward_pre_hooks) for m in net.modules()]
    found += ["hook" for some in hooks for each in some if each]
    found += ["gradient" for p in net.parameters() if p.grad is not None]
    return [name for name in found if name not in nn.Conv2d(1, 1, 1).__dict__]


def test_model_is_plain_again_afterwards_and_can_be_trained_again() -> None:
    net, (x, y) = make_net(), make_data()
    clean = traces(net)
    first = gradient_of_step(net, make_losses(net, x, y), everybody())
    assert traces(net) == clean
    again = gradient_of_step(net, make_losses(net, x, y), everybody())
    assert torch.equal(first, again)


def test_model_is_plain_again_after_an_error() -> None:
    net, (x, y) = make_net(), make_data()
    clean = traces(net)

    def losses(index: Tensor) -> Tensor:
        net(x[index])
        raise KeyError("broken")

    with pytest.raises(KeyError):
        gradient_of_step(net, losses, everybody())
    assert traces(net) == clean
    gradient_of_step(net, make_losses(net, x, y), everybody())


def test_frozen_parameters_stay_and_cost_no_norm() -> None:
    net, (x, y) = make_net(), make_data()
    net.conv.requires_grad_(False)
    before = net.conv.weight.clone()
    found = gradient_of_step(net, make_losses(net, x, y), torch.tensor([SAMPLES - 1]))
    assert len(found) == sum(p.numel() for p in net.parameters()) - 40
    assert float(found.norm()) == pytest.approx(CLIP, rel=1e-4)
    assert torch.equal(net.conv.weight, before)


class ReadsAWeightOutsideItsLayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 5 * self.head.weight.sum() * x.mean(dim=(1, 2, 3))[:, None]


class MixesTheBatchIntoRows(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = functional.avg_pool2d(torch.tanh(self.conv(x)), 3).flatten(1)
        return self.head(self.twice(h.repeat_interleave(2, 0)))[::2]


def enter(net: nn.Module, public: Callable[[int], Tensor], physical_batch: int = 32) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with PrivateSteps(
        net,
        optimizer,
        make_plan(),
        keystream=Keystream(bytes(32)),
        physical_batch=physical_batch,
        public_losses=public,
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ReadsAWeightOutsideItsLayer, "do not add up"), (MixesTheBatchIntoRows, "4 rows")],
)
def test_models_whose_samples_cannot_be_told_apart_are_refused_before_any_step(
    kind: type[Net], message: str
) -> None:
    net = kind()
    clean = traces(net)
    with pytest.raises(FederationError, match=message):
        enter(net, public_losses(net))
    assert traces(net) == clean


def test_what_has_no_gradient_in_one_round_is_looked_at_in_the_next() -> None:
    """Behind a projection that starts at zero, every gradient of the first round is zero."""
    net = ReadsAWeightOutsideItsLayer()
    public = public_losses(net)
    enter(net, lambda rows: 0.0 * public(rows))
    with pytest.raises(FederationError, match="do not add up"):
        enter(net, public)


def test_public_samples_that_do_not_fit_are_fewer() -> None:
    net, asked = make_net(), []
    public = public_losses(net)

    def losses(rows: int) -> Tensor:
        asked.append(rows)
        if rows > 1:
            raise torch.OutOfMemoryError
        return public(rows)

    enter(net, losses, physical_batch=8)
    assert asked == [2, 2, 2, 1]


@pytest.mark.parametrize("net", [make_net(), MixesTheBatchIntoRows()], ids=["sound", "mixing"])
def test_no_value_of_a_patient_decides_about_a_refusal(net: Net) -> None:
    """What is refused is refused whatever the record holds, and nothing else is."""

    def outcome(value: float) -> str:
        x, y = make_data()
        x[2], y[2] = value, value
        losses = make_losses(net, x, y)
        engine = dp_sgd.engine_for(net)
        try:
            Clipper(net, engine, max_grad_norm=CLIP).clip(lambda: losses(everybody()))
        except FederationError as error:
            return str(error)
        finally:
            engine.close()
        return ""

    values = (0.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"))
    assert len({outcome(value) for value in values}) == 1


def test_use_of_a_layer_that_does_not_reach_the_loss_is_harmless() -> None:
    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            self.unused(torch.zeros(len(x), 5))
            return out

    net, (x, y) = Half(), make_data()
    losses = make_losses(net, x, y)
    plain = make_net()
    plain.load_state_dict(net.state_dict())
    expected = gradient_of_step(plain, make_losses(plain, x, y), everybody())
    for physical_batch in (4, 32):
        found = gradient_of_step(net, losses, everybody(), physical_batch=physical_batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


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
