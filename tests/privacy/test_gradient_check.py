"""Models are refused for what they do to public samples, before any private step.

B samples.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.errors import FederationError
from medfusion.privacy.book_keeping.engine import BookKeeping
from medfusion.privacy.clipping import Clipper, GradientEngine
from medfusion.privacy.gradient_check import check_gradients
from medfusion.privacy.opacus_hooks import OpacusHooks

B = 5
X = torch.randn(B, 4, 6, generator=torch.Generator().manual_seed(0))
both_engines = pytest.mark.parametrize("kind", [BookKeeping, OpacusHooks])
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


class Net(nn.Module):
    """A normalised, projected mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(self.norm(x))).mean(1))
        return out


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


def check(net: nn.Module, kind: type[GradientEngine], losses: Callable[[], Tensor]) -> None:
    engine = kind(net)
    try:
        check_gradients(dict(net.named_parameters()), engine, losses)
    finally:
        engine.close()


@both_engines
def test_a_sound_model_passes_and_stays_as_it_was(kind: type[GradientEngine]) -> None:
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check(net, kind, lambda: net(X).square().sum(1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.grad is None for value in net.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


@both_engines
@pytest.mark.parametrize("name", ["norm.weight", "first.weight", "last.bias", "unused.bias"])
def test_a_parameter_read_outside_its_layer_is_refused(
    kind: type[GradientEngine], name: str
) -> None:
    net = make_net()
    value = net.get_parameter(name)
    with pytest.raises(FederationError, match=rf"{name}.*do not add up"):
        check(net, kind, lambda: net(X).square().sum(1) + value.sum())


def test_inputs_that_require_gradients_are_refused() -> None:
    net, x = make_net(), X.clone().requires_grad_()
    with pytest.raises(FederationError, match="detach"):
        check(net, BookKeeping, lambda: net(2 * x).sum(1))


@both_engines
@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_gradients_that_say_nothing_pass(kind: type[GradientEngine], factor: float) -> None:
    net = make_net()
    check(net, kind, lambda: factor * net(X).sum(1))


def crafted_record() -> tuple[Tensor, Tensor]:
    """Return 4096 nearly constant tokens, [1, 4096, 8], and the loss's slopes in their norms.

    The gradient of the norm's weights is nothing next to the terms that are added up for it, so
    that what is found in float32 depends on how a token's mean is taken, and on the order.
    """
    draw = torch.Generator().manual_seed(0)
    x = 1e4 + 1e-2 * torch.randn(1, 4096, 8, generator=draw)
    slopes = torch.randn(1, 4096, 8, generator=draw)
    normed = functional.layer_norm(x, (8,))
    share = (slopes * normed).sum(1, keepdim=True) / normed.square().sum(1, keepdim=True)
    return x, slopes - share * normed


def test_no_patients_record_gets_a_model_refused() -> None:
    net = nn.LayerNorm(8)
    x, slopes = crafted_record()

    def losses() -> Tensor:
        return (net(x) * slopes).sum((1, 2))

    with pytest.raises(FederationError, match=r"weight.*do not add up"):
        check(net, BookKeeping, losses)  # so it must not be looked at
    sums = Clipper(net, BookKeeping(net), max_grad_norm=1.0).clip(losses).gradients
    empty = Clipper(net, BookKeeping(net), max_grad_norm=1.0).clip(lambda: 0 * losses()).gradients
    for name, value in sums.items():
        assert torch.isfinite(value).all()
        assert not empty[name].any()
