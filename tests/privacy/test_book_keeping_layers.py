"""Each layer that book-keeping knows, alone."""

from collections.abc import Callable

import pytest
import torch
from layer_samples import CASES, assert_near, found_by_engine, one_by_one, seeded
from torch import Tensor, nn

from medfusion.privacy.book_keeping.engine import BookKeeping

pytestmark = pytest.mark.usefixtures("one_thread")
every_layer = pytest.mark.parametrize(("make", "x"), CASES.values(), ids=CASES.keys())


@every_layer
def test_a_layer_alone_is_exact(make: Callable[[], nn.Module], x: Tensor) -> None:
    layer = seeded(make).double()
    expected = one_by_one(layer, x)
    assert_near(found_by_engine(layer, x), expected, 1e-12)
    single = seeded(make)
    found = found_by_engine(single, x.float() if x.is_floating_point() else x)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert_near(found, expected, 1e-5)


def each_loss_under_autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    return torch.tanh(out.float() + 0.1).pow(2).flatten(1).sum(1)


@every_layer
def test_under_autocast_gradients_are_as_near_as_those_of_a_plain_backward_pass(
    make: Callable[[], nn.Module], x: Tensor
) -> None:
    x = x.bfloat16() if x.is_floating_point() else x
    exact = one_by_one(seeded(make).double(), x.double() if x.is_floating_point() else x)
    layer = seeded(make)
    plain = one_by_one(layer, x, each_loss_under_autocast)
    found = BookKeeping(layer).gradients(lambda: each_loss_under_autocast(layer, x)).by_sample
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        assert found[name].dtype == torch.float32
        error, of_plain = (float((each[name] - expected).norm()) for each in (found, plain))
        assert error <= 1.5 * of_plain, name


@pytest.mark.parametrize(
    "case", ["conv", "transposed", "linear_tokens", "group_norm", "layer_norm"]
)
def test_of_a_layer_half_frozen_the_other_half_is_trained(case: str) -> None:
    make, x = CASES[case]
    for frozen in ("weight", "bias"):
        layer = seeded(make).double()
        getattr(layer, frozen).requires_grad_(False)
        assert_near(found_by_engine(layer, x), one_by_one(layer, x), 1e-12)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.BatchNorm1d(2, affine=False)), True),
        (lambda: nn.BatchNorm1d(2), False),
        (lambda: nn.BatchNorm1d(2).requires_grad_(False), True),
        (lambda: Scaled(3, 2), False),
        (lambda: nn.GRU(3, 2), False),
        (lambda: nn.Embedding(3, 2, max_norm=1.0), False),
        (lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), False),
        (lambda: nn.Embedding(3, 2, sparse=True), False),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), False),
    ],
)
def test_what_it_knows(make: Callable[[], nn.Module], known: bool) -> None:
    assert BookKeeping.knows(make()) == known
