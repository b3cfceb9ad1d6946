"""How the weights of convolutions lie in memory while a model trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Keep weights of two-dimensional convolutions channels-last; contiguous again afterwards.

    Convolutions of images then take less time (``tests/benchmarks/round_cost.py``); those of
    volumes do not, and private steps hardly. Gradients must lie as the weights do, as autograd's
    do: a fused optimiser takes numbers in the order of memory, whatever their places are.
    """
    _lay_out(model, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(model, torch.contiguous_format)  # as whoever writes or sends them expects


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
