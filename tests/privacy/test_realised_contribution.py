"""What one patient moves in a step's sum of clipped gradients, as computed.

B samples, C the clipping norm.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from medfusion.privacy.book_keeping.engine import BookKeeping
from medfusion.privacy.clipping import Clipper

C = 0.01
EXCESS = 1e-5  # of C; SUM_SLACK has room for a hundred times that
REMOVED = 8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """A convolution, norms and layers used twice, on images [B, 1, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.twice = nn.Linear(8, 8)
        self.tokens = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        h = self.tokens(torch.tanh(self.twice(torch.tanh(self.twice(h)))).float())
        out: Tensor = self.head(h.mean(1))
        return out


def most_moved(model: nn.Module, x: Tensor, slopes: Tensor, mode: str) -> float:
    """Return the largest move over some samples' removal, in units of C."""
    clipper = Clipper(model, BookKeeping(model), max_grad_norm=C)

    def total(weights: Tensor) -> Tensor:
        def losses() -> Tensor:
            inside = torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16")
            with inside if mode != "bfloat16_around_all" else nullcontext():
                out = model(x)
            return weights * (out.float() * slopes).sum(1)

        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16_around_all"):
            sums = clipper.clip(losses).gradients
        return torch.cat([value.flatten() for value in sums.values()])

    whole, moved = total(torch.ones(len(x))), []
    for j in torch.linspace(0, len(x) - 1, REMOVED).long():
        weights = torch.ones(len(x))
        weights[j] = 0
        moved.append(float((whole - total(weights)).norm()) / C)
    assert min(moved) > 1 - 1e-4  # all were clipped
    return max(moved)


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "bfloat16_around_all"])
@pytest.mark.parametrize("batch", [32, 256, 1024])
def test_a_patient_moves_the_sum_by_at_most_the_clipping_norm(batch: int, mode: str) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Net()
    x = torch.randn(batch, 1, 6, 6, generator=draw)
    slopes = 1e3 * torch.randn(batch, 3, generator=draw)
    assert most_moved(net, x, slopes, mode) <= 1 + EXCESS


@pytest.mark.parametrize("batch", [32, 256, 1024])
def test_nor_where_all_gradients_and_all_roundings_point_one_way(batch: int) -> None:
    """Every sample has one gradient, the same in every coordinate, so that errors add up."""
    for width in (1, 3, 7, 10, 100):
        for value in (1.1, 1.3, 1.7):
            x = torch.full((batch, width), value)
            model = nn.Linear(width, 1, bias=False)
            assert most_moved(model, x, torch.ones(batch, 1), "float32") <= 1 + EXCESS
