"""Which models take private steps, in what memory, and what stays of a step."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from private_steps import (
    CLIP,
    SAMPLES,
    Net,
    everybody,
    gradient_of_step,
    make_data,
    make_losses,
    make_net,
    make_plan,
    public_losses,
)
from torch import Tensor, nn
from torch.nn import functional

from medfusion.errors import FederationError
from medfusion.privacy import dp_sgd
from medfusion.privacy.clipping import Clipper
from medfusion.privacy.dp_sgd import PrivateSteps
from medfusion.privacy.keystream import Keystream

pytestmark = pytest.mark.usefixtures("one_thread", "each_engine")


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
