"""Sums of clipped per-sample gradients, whoever forms the gradients.

A sample's norm and its share of the sum are computed in float32 from the very same numbers, so
that no rounding lets it exceed the clipping norm C; rounding before that only changes which
gradient is clipped.

Shapes: b samples of a chunk.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor, nn

from medfusion.errors import FederationError

# Per-sample gradients add up to the batch's gradient: float32 does so to 1e-5 or better,
# bfloat16 to 1e-2. A weight that is read outside its layer is off by half or more.
_MISMATCH = 0.05
_ROUNDING = 1e-4  # of the largest gradient of any parameter


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
    by_batch
        Gradients [*shape], from autograd alone, of the parameters that were to be compared;
        without those that did not take part.
    """

    losses: Tensor
    by_sample: dict[str, Tensor]
    by_batch: dict[str, Tensor]


class GradientEngine(Protocol):
    """Forms per-sample gradients of one model."""

    def gradients(self, losses: Callable[[], Tensor], compared: Collection[str]) -> SampleGradients:
        """Run ``losses``, which returns one loss per sample, [b], and differentiate them.

        Also differentiate their sum by the parameters named in ``compared``.
        """

    def close(self) -> None:
        """Leave the model as it was."""


@dataclass(frozen=True)
class ClippedSums:
    """What a chunk adds to a step, before noise: all of it secrets.

    Attributes
    ----------
    gradients
        Sums of the clipped gradients [*shape] of all trained parameters, at least float32.
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
        self._unchecked = set(self._parameters)

    def clip(self, losses: Callable[[], Tensor]) -> ClippedSums:
        """Return the sums over the samples whose losses, float32 [b], the call returns.

        Raises
        ------
        FederationError
            If the gradients of the samples cannot be told apart, or do not add up to the
            gradient of the batch.
        """
        found = self._engine.gradients(losses, self._unchecked)
        device = found.losses.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):  # which would round the sums
            sizes = {name: _norms(each) for name, each in found.by_sample.items()}
            if self._unchecked:
                self._check(found, sizes)
            norms = _norms(
                torch.stack([found.losses.new_zeros(len(found.losses)), *sizes.values()], 1)
            )
            sums = self._sum(found.by_sample, norms)
        loss = found.losses.nan_to_num(0.0, 0.0, 0.0).sum()
        return ClippedSums(gradients=sums, loss=loss, norms=norms)

    def close(self) -> None:
        """Leave the model as it was."""
        self._engine.close()

    def _sum(self, by_sample: dict[str, Tensor], norms: Tensor) -> dict[str, Tensor]:
        """Clip and add up; a sample whose norm is not finite adds nothing."""
        finite = norms.isfinite()
        if not bool(finite.all()):
            for each in by_sample.values():
                each[~finite] = 0  # zero times infinity would be NaN
        factors = (self.max_grad_norm / norms).clamp(max=1.0)
        factors = torch.where(finite, factors, 0.0)
        sums = {}
        for name, parameter in self._parameters.items():
            gradient = by_sample.get(name)
            if gradient is None:
                sums[name] = torch.zeros_like(parameter)
            else:
                scaled = torch.mv(gradient.flatten(1).t(), factors.to(gradient.dtype))
                sums[name] = scaled.reshape(parameter.shape)
        return sums

    def _check(self, found: SampleGradients, sizes: dict[str, Tensor]) -> None:
        """Refuse a model with gradients that the engine does not see.

        A parameter is looked at until it has had a gradient to look at: behind projections that
        start at zero there is none in the first step.
        """
        # A parameter that a later normalisation cancels has a gradient of rounding errors only.
        if not sizes:
            sizes = {"": found.losses.new_zeros(1)}
        norms = {name: each.norm() for name, each in sizes.items()}
        floor = _ROUNDING * float(torch.stack(list(norms.values())).max())  # one wait, not many
        if not isfinite(floor):
            return  # says nothing: look at the next batch
        for name in sorted(self._unchecked):
            own = found.by_sample.get(name)
            nothing = torch.zeros_like(self._parameters[name])
            total = nothing if own is None else own.sum(0)
            expected = found.by_batch.get(name, nothing)
            difference = float((total - expected).norm())
            size = float(norms.get(name, 0.0) + expected.norm())
            if not isfinite(difference) or size <= floor:
                continue  # says nothing: look at the next batch
            if difference > _MISMATCH * size + floor:
                raise FederationError(
                    f"parameter {name!r} cannot be trained privately: its per-sample gradients "
                    "do not add up to its gradient; use it through its own layer only, with one "
                    "tensor as input"
                )
            self._unchecked.discard(name)


def _norms(gradient: Tensor) -> Tensor:
    """Norms [b] of gradients [b, ...], in two steps: long sums of squares lose digits."""
    rows = gradient.flatten(2) if gradient.ndim > 2 else gradient
    partial = torch.linalg.vector_norm(rows, dim=2) if rows.ndim > 2 else rows
    norms: Tensor = torch.linalg.vector_norm(partial.reshape(len(partial), -1), dim=1)
    return norms
