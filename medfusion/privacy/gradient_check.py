"""Refuse a model whose per-sample gradients are not all of its gradient.

Looked at on public data alone: whether a model is refused then says nothing of a patient.
"""

from collections.abc import Callable, Mapping
from math import isfinite

import torch
from torch import Tensor, nn

from medfusion.errors import FederationError
from medfusion.privacy.clipping import GradientEngine, sample_norms

PUBLIC_SAMPLES = 2  # each costs what a patient's study does; of one, rows could not be told

# Per-sample gradients add up to the batch's gradient: float32 does so to 1e-5 or better,
# bfloat16 to 1e-2. A weight that is read outside its layer is off by half or more.
_MISMATCH = 0.05
_ROUNDING = 1e-4  # of the largest gradient of any parameter


def check_gradients(
    parameters: Mapping[str, nn.Parameter], engine: GradientEngine, losses: Callable[[], Tensor]
) -> None:
    """Compare the sum of the samples' gradients with autograd's gradient of the batch.

    A parameter whose gradients are zero or not finite passes: behind projections that start at
    zero there are none in a run's first round.

    Parameters
    ----------
    parameters
        Those that are trained, by name.
    engine
        Forms the gradients of the samples.
    losses
        Returns the losses, float32 [b], of public samples.

    Raises
    ------
    FederationError
        If the gradients of the samples cannot be told apart, or do not add up.
    """
    by_sample, by_batch = engine.compared(losses)
    with torch.no_grad():
        sizes = {name: sample_norms(each).norm() for name, each in by_sample.items()}
        # A parameter that a later normalisation cancels has a gradient of rounding errors only.
        floor = _ROUNDING * max((float(size) for size in sizes.values()), default=0.0)
        for name in sorted(by_sample.keys() | by_batch.keys()):
            nothing = torch.zeros_like(parameters[name])
            own, expected = by_sample.get(name), by_batch.get(name, nothing)
            total = nothing if own is None else own.sum(0)
            difference = float((total - expected).norm())
            size = float(sizes.get(name, 0.0) + expected.norm())
            if isfinite(difference) and difference > _MISMATCH * size + floor:
                raise FederationError(
                    f"parameter {name!r} cannot be trained privately: its per-sample gradients "
                    "do not add up to its gradient; use it through its own layer only, with one "
                    "tensor as input"
                )
