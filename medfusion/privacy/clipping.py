"""Sums of clipped per-sample gradients, whoever forms the gradients.

A sample's norm and its share of the sum are computed from the very same numbers, so that no
rounding before that lets it exceed the clipping norm C: it only changes which gradient is clipped.

Shapes: b samples of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

# Rows of one sum in float32, whose worst rounding grows with their square; see dp_sgd.py.
ROWS_IN_FLOAT32 = 32


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of the samples of one chunk: all of it secrets.

    Attributes
    ----------
    losses
        [b], detached.
    by_sample
        Gradients [b, *shape] by parameter, at least float32; without the parameters that did not
        take part.
    """

    losses: Tensor
    by_sample: dict[str, Tensor]


class GradientEngine(Protocol):
    """Forms per-sample gradients of one model."""

    def gradients(self, losses: Callable[[], Tensor]) -> SampleGradients:
        """Run ``losses``, which returns one loss per sample, [b], and differentiate them.

        It is refused for what the model does to shapes and tensors, never for their values.
        """

    def compared(self, losses: Callable[[], Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each sample's gradients, as `gradients` does, and those of their sum.

        The latter, [*shape] by parameter, come from autograd alone.
        """

    def close(self) -> None:
        """Leave the model as it was."""


@dataclass(frozen=True)
class ClippedSums:
    """What a chunk adds to a step, before noise: all of it secrets.

    Attributes
    ----------
    gradients
        Sums of the clipped gradients [*shape] of all trained parameters, float64.
    loss
        Sum of the losses that are finite.
    norms
        Norms [b] of the gradients before clipping; not finite where a sample adds nothing.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    norms: Tensor


class Clipper:
    """Clips each sample's gradient to a norm and adds them up.

    Parameters
    ----------
    model
        Its parameters that require a gradient are clipped as one vector.
    engine
        Forms the gradients of that model's samples.
    max_grad_norm
        C.
    """

    def __init__(self, model: nn.Module, engine: GradientEngine, *, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm
        self._engine = engine
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def clip(self, losses: Callable[[], Tensor]) -> ClippedSums:
        """Return the sums over the samples whose losses, float32 [b], the call returns.

        Raises
        ------
        FederationError
            If the gradients of the samples cannot be told apart.
        """
        found = self._engine.gradients(losses)
        device = found.losses.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):  # which would round the sums
            # a zero each, so that there is something to stack where no parameter took part
            squares = [torch.zeros_like(found.losses, dtype=torch.float64)]
            squares += [sample_norms(each).square() for each in found.by_sample.values()]
            norms = torch.stack(squares).sum(0).sqrt().to(found.losses.dtype)
            sums = self._sum(found.by_sample, norms)
        loss = found.losses.nan_to_num(0.0, 0.0, 0.0).sum()
        return ClippedSums(gradients=sums, loss=loss, norms=norms)

    def _sum(self, by_sample: dict[str, Tensor], norms: Tensor) -> dict[str, Tensor]:
        """Clip and add up; a sample whose norm is not finite adds nothing."""
        finite = norms.isfinite()
        if not bool(finite.all()):
            for each in by_sample.values():
                each[~finite] = 0  # zero times infinity would be NaN
        factors = (self.max_grad_norm / norms).clamp(max=1.0)
        factors = torch.where(finite, factors, 0.0)
        return {
            name: _combined(by_sample[name], factors).view(parameter.shape)
            if name in by_sample
            else torch.zeros_like(parameter, dtype=torch.float64)
            for name, parameter in self._parameters.items()
        }


def _combined(gradient: Tensor, factors: Tensor) -> Tensor:
    """Return the sum [P], float64, of gradients [b, ...] times their factors [b]."""
    rows = gradient.flatten(1)
    weights = factors.to(gradient.dtype)
    pieces = (torch.split(each, ROWS_IN_FLOAT32) for each in (rows, weights))
    first, *others = (torch.mv(some.t(), weight) for some, weight in zip(*pieces, strict=True))
    total = first.double()
    for part in others:
        total += part
    return total


def sample_norms(gradient: Tensor) -> Tensor:
    """Return the norms [b], float64, of gradients [b, ...].

    Only sums of squares along the innermost dimensions are float32: long ones lose digits.
    """
    rows = gradient.flatten(2) if gradient.ndim > 2 else gradient.unsqueeze(-1)
    along_rows = torch.linalg.vector_norm(rows, dim=2)
    norms: Tensor = torch.linalg.vector_norm(along_rows, dim=1, dtype=torch.float64)
    return norms
