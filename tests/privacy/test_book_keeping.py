"""Book-keeping against samples taken one at a time, in float64.

B samples, C the clipping norm.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from layer_samples import (
    CASES,
    IDS,
    B,
    assert_near,
    each_loss,
    found_by_engine,
    one_by_one,
    seeded,
    trained,
    values,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from medfusion.errors import FederationError
from medfusion.privacy.book_keeping import layers
from medfusion.privacy.book_keeping.engine import BookKeeping
from medfusion.privacy.clipping import ClippedSums, Clipper

CLIP = 0.3
pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Smooth: an embedding and a convolution enter; one layer is used twice, two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.twice = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 7, bias=False)
        self.tied.weight = self.table.weight
        self.unused = nn.Linear(3, 2)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(3).expand(len(x), -1)
        h = torch.tanh(self.norm(self.conv(x))).mean(dim=3).flatten(1)
        h = self.frozen(torch.tanh(self.twice(torch.tanh(self.twice(h)))))
        out: Tensor = self.tied(torch.tanh(h + self.table(ids).mean(dim=1)))
        return out


def make_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    return seeded(Net).to(dtype)


IMAGES = values(B, 1, 2, 6) * torch.logspace(-1, 1, B).double()[:, None, None, None]


def clip(model: nn.Module, losses: Callable[[], Tensor], norm: float = CLIP) -> ClippedSums:
    return Clipper(model, BookKeeping(model), max_grad_norm=norm).clip(losses)


def test_reused_tied_frozen_and_unused_parameters() -> None:
    net = make_net()
    expected = one_by_one(net, IMAGES)
    assert all(not expected.pop(f"unused.{name}").any() for name in ("weight", "bias"))
    found = found_by_engine(net, IMAGES)
    assert_near(found, expected, 1e-12)
    assert not any(name.startswith("frozen") for name in found)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_norms_and_sums_are_those_of_samples_clipped_one_at_a_time(
    dtype: torch.dtype, limit: float
) -> None:
    net = make_net()
    rows = one_by_one(net, IMAGES)
    norms = torch.stack([each.flatten(1).norm(dim=1) for each in rows.values()]).norm(dim=0)
    clip_at = float(norms.median())
    factors = (clip_at / norms).clamp(max=1.0)
    assert 0 < int((factors < 1).sum()) < B - 1
    net, x = make_net(dtype), IMAGES.to(dtype)
    found = clip(net, lambda: each_loss(net, x), clip_at)
    torch.testing.assert_close(found.norms.double(), norms, rtol=limit, atol=0.0)
    for name, each in rows.items():
        total = torch.einsum("b,b...->...", factors, each)
        assert found.gradients[name].dtype == torch.float64
        assert float((found.gradients[name] - total).norm()) <= limit * float(total.norm())
    expected = float(each_loss(net, x).detach().sum())
    assert float(found.loss) == pytest.approx(expected, rel=1e-6)


def as_vector(sums: ClippedSums) -> Tensor:
    return torch.cat([value.flatten() for value in sums.gradients.values()]).double()


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "bfloat16_around_all"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_taking_a_sample_away_moves_the_sum_by_at_most_the_clipping_norm(
    mode: str, scale: float
) -> None:
    net, x = make_net(torch.float32), IMAGES.float()

    def total(weight: Tensor) -> Tensor:
        def losses() -> Tensor:
            inside = torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16")
            with inside if mode != "bfloat16_around_all" else nullcontext():
                out = net(x)
            return scale * weight * torch.tanh(out.float() + 0.1).pow(2).sum(1)

        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16_around_all"):
            return as_vector(clip(net, losses, 0.01))

    whole = total(torch.ones(B))
    for j in range(B):
        without = torch.ones(B)
        without[j] = 0
        moved = float((whole - total(without)).norm())
        assert 0.01 * (1 - 1e-4) < moved <= 0.01 * (1 + 1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_sample_without_a_finite_norm_adds_nothing(bad: float) -> None:
    net, x = make_net(torch.float32), IMAGES.float()
    weight = torch.ones(B)
    weight[2] = bad
    found = clip(net, lambda: weight * each_loss(net, x))
    assert found.norms.isfinite().tolist() == [j != 2 for j in range(B)]
    assert torch.isfinite(found.loss)
    weight = torch.where(torch.arange(B) == 2, 0.0, 1.0)
    expected = clip(net, lambda: weight * each_loss(net, x))
    torch.testing.assert_close(as_vector(found), as_vector(expected), rtol=1e-6, atol=1e-9)


def test_a_parameter_that_takes_no_part_gets_zeros() -> None:
    net = make_net(torch.float32)
    found = clip(net, lambda: each_loss(net, IMAGES.float()))
    assert found.gradients.keys() == trained(net).keys()
    assert not found.gradients["unused.weight"].any()
    alone = clip(net, lambda: torch.zeros(B))
    assert not as_vector(alone).any()
    assert alone.norms.tolist() == [0.0] * B


def test_weights_get_no_gradient_from_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net(torch.float32)
    asked: list[object] = []
    real = torch.autograd.grad

    def spy(total: Tensor, inputs: list, **options: bool) -> tuple[Tensor | None, ...]:
        asked.extend(inputs)
        return real(total, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    clip(net, lambda: each_loss(net, IMAGES.float()))
    assert len(asked) == 2  # the outputs of the convolution and of the table
    assert not any(isinstance(each, nn.Parameter) for each in asked)


def test_an_input_changed_in_place_is_refused() -> None:
    table = seeded(lambda: nn.Embedding(7, 4))

    def losses() -> Tensor:
        ids = IDS.clone()
        out = table(ids)
        ids[0, 0] = 5
        return out.pow(2).flatten(1).sum(1)

    with pytest.raises(FederationError, match="in place"):
        clip(table, losses)


def test_a_batch_that_is_not_in_front_is_refused() -> None:
    table = seeded(lambda: nn.Embedding(7, 4))

    def losses() -> Tensor:
        return table(torch.arange(7)).pow(2).sum() + torch.zeros(B)

    with pytest.raises(FederationError, match="5 samples, found 7 rows"):
        clip(table, losses)


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_of_a_pass_stays(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    net = make_net(torch.float32)
    before = {name: set(layer.__dict__) for name, layer in net.named_modules()}
    kept: list[weakref.ref[object]] = []

    def spy(layer: nn.Linear, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        kept.extend([weakref.ref(x), weakref.ref(gradient)])
        return layers.linear(layer, x, gradient)

    monkeypatch.setitem(layers._RULES, nn.Linear, spy)

    def losses() -> Tensor:
        out = each_loss(net, IMAGES.float())
        mark = nn.Module()  # lives as long as the graph, through a hook in it
        out.register_hook(lambda gradient, mark=mark: None)
        kept.append(weakref.ref(mark))
        if broken:
            raise KeyError("broken")
        return out

    with pytest.raises(KeyError) if broken else nullcontext():
        clip(net, losses)
    assert len(kept) == (1 if broken else 7)
    assert [each for each in kept if each() is not None] == []
    assert {name: set(layer.__dict__) for name, layer in net.named_modules()} == before
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    assert all(value.grad is None for value in net.parameters())


def test_a_layer_run_under_no_grad_adds_nothing() -> None:
    net = make_net()
    expected = found_by_engine(net, IMAGES)

    def losses() -> Tensor:
        with torch.no_grad():
            net(IMAGES + 1)
        return each_loss(net, IMAGES)

    assert_near(BookKeeping(net).gradients(losses).by_sample, expected, 1e-12)


class _TypesOfNorms(TorchDispatchMode):
    """Collects the types of floating-point numbers that kernels of GroupNorm are given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[set[torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "group_norm" in str(func):
            tensors = [each for each in args if isinstance(each, Tensor)]
            self.found.append({each.dtype for each in tensors if each.is_floating_point()})
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", [torch.bfloat16, torch.float32])
def test_kernels_of_a_gpu_are_given_one_type(gradient: torch.dtype) -> None:
    """Under autocast a layer's input is bfloat16, its weights are not, and a GPU takes no mixture.

    The tensors only pretend to be on a GPU.
    """
    with FakeTensorMode(), _TypesOfNorms() as kernels:
        layer = nn.GroupNorm(2, 6, device="cuda")
        x = torch.zeros(B, 6, 4, 3, device="cuda", dtype=torch.bfloat16)
        found = layers.group_norm(layer, x, torch.zeros_like(x, dtype=gradient))
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert kernels.found == [{torch.float32}] * 2


def test_a_norm_in_one_type_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes from bfloat16 inputs, on the CPU."""
    rule = layers.normalized_in
    assert rule(torch.bfloat16, "cpu") == torch.bfloat16
    assert rule(torch.float64, "cuda") == torch.float64
    monkeypatch.setattr(layers, "normalized_in", lambda dtype, _: rule(dtype, "cuda"))
    layer, x = seeded(CASES["group_norm"][0]), CASES["group_norm"][1].bfloat16()
    gradient = values(*x.shape[1:], B).movedim(-1, 0)
    expected = layers.group_norm(seeded(CASES["group_norm"][0]).double(), x.double(), gradient)
    assert_near(layers.group_norm(layer, x, gradient.float()), expected, 1e-6)
