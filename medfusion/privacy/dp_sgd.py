"""Steps of differentially private SGD: clip each patient's gradient, sum, add noise [1]_.

Opacus computes per-sample gradients (hooks) and clips and noises them (`DPOptimizer`), set up
from a `DpPlan` and from nothing else. What this module adds holds a patient's contribution to
a step at C in cases that Opacus leaves open.

======================================  ===================================================
case                                    what happens
======================================  ===================================================
gradient in bfloat16                    cast to float32 before norms, clipping and sums
gradient with an infinity or NaN        that patient contributes zero
parameter that a batch did not use      zero per-sample gradients, noise as usual
empty batch                             no forward pass; a step of noise alone
logical batch above the physical one    clipped sums add up over chunks, noise comes once
chunk that does not fit on the GPU      the physical batch is halved, that chunk repeated
layer that mixes or hides samples       refused before the first update
======================================  ===================================================

References
----------
.. [1] Abadi et al., "Deep learning with differential privacy", CCS 2016.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from types import TracebackType
from typing import Any, Self, cast

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from medfusion.errors import FederationError
from medfusion.privacy import layer_gradients as layer_gradients  # registers them
from medfusion.privacy.adaptive_norm import AdaptiveNorm, split_noise
from medfusion.privacy.plan import DpPlan

# Per-sample gradients add up to the batch's gradient: float32 does so to 1e-5 or better,
# bfloat16 to 1e-2. A weight that is read outside its layer is off by half or more.
_MISMATCH = 0.05
_ROUNDING = 1e-4  # of the largest gradient of any parameter


class PrivateSteps:
    """A model and its optimiser, taking private steps until closed.

    Use as a context manager: on leaving, the model is plain again, without hooks and without
    any patient's gradient.

    Parameters
    ----------
    model
        On its device, in training mode; parameters that require no gradient stay as they are.
    optimizer
        Any optimiser over the model's trainable parameters.
    plan
        Clip, noise and denominator.
    generator
        Private; on the model's device. The noise comes from it.
    physical_batch
        Most samples in one forward and backward pass.
    before_update
        Called once the noised mean gradient is in place, before the optimiser moves weights:
        what it changes is post-processing as long as it reads weights and gradients only.
    adaptive
        Sets the clipping norm of each step, and takes its part of the plan's noise; None: the
        plan's own norm.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        plan: DpPlan,
        *,
        generator: torch.Generator,
        physical_batch: int,
        before_update: Callable[[], None] | None = None,
        adaptive: AdaptiveNorm | None = None,
    ) -> None:
        self._adaptive = adaptive
        self._model = model
        self._physical_batch = physical_batch
        # Any: Opacus hangs attributes of its own on parameters.
        self._parameters: dict[str, Any] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        # The hooks of the first layer fire without a gradient of its input, as they should.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        # "sum": the loss that we differentiate is a sum over samples, each of its own.
        self._hooks = GradSampleHooks(model, loss_reduction="sum")
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=(
                split_noise(plan.noise_multiplier)[0] if adaptive else plan.noise_multiplier
            ),
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch,
            loss_reduction="mean",  # divides by the expected batch, never by the drawn one
            generator=generator,
        )
        if before_update is not None:
            self._optimizer.attach_step_hook(lambda _: before_update())
        self._unchecked = set(self._parameters)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.cleanup()
        self._forget_samples()
        for parameter in self._parameters.values():
            parameter.grad = None
            del parameter.summed_grad

    def step(self, index: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """Take one step on the drawn samples; returns the sum of their losses (a secret).

        Parameters
        ----------
        index
            Int64 [b], the drawn samples, at most one of each patient; may be empty.
        losses
            Maps some of ``index``, [c], to their losses, float32 [c]. Each loss depends on its
            own sample alone.
        """
        totals = {n: torch.zeros_like(p) for n, p in self._parameters.items()}
        loss = torch.zeros((), device=next(iter(totals.values())).device)
        done = 0
        while done < len(index):
            chunk = index[done : done + self._physical_batch]
            part = None
            with suppress(torch.OutOfMemoryError):  # past it, the exception holds no tensors
                part = self._clip(chunk, losses)
            if part is None:
                self._halve()
                continue
            for name, parameter in self._parameters.items():
                totals[name] += parameter.summed_grad
            loss += part
            done += len(chunk)
        for name, parameter in self._parameters.items():
            parameter.summed_grad = totals[name]
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        self._optimizer.step()  # has nothing left to clip: adds noise, divides, updates
        if self._adaptive is not None:
            self._adaptive.move()
            self._optimizer.max_grad_norm = self._adaptive.value
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _clip(self, chunk: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """Leave the sum of the chunk's clipped gradients in each ``summed_grad``."""
        try:
            each = losses(chunk)
            torch.autograd.backward(each.sum())
            gradients = {n: self._per_sample(n, len(chunk)) for n in self._parameters}
            if self._unchecked:
                self._check(gradients)
            _silence_non_finite(list(gradients.values()))
            for name, parameter in self._parameters.items():
                parameter.grad_sample = gradients[name]
                parameter.summed_grad = None
            self._optimizer.clip_and_accumulate()
            if self._adaptive is not None:
                self._adaptive.observe(_norms(list(gradients.values())))
            return each.detach().nan_to_num(0.0, 0.0, 0.0).sum()
        finally:
            self._forget_samples()
            self._optimizer.original_optimizer.zero_grad(set_to_none=True)

    def _per_sample(self, name: str, samples: int) -> Tensor:
        """Return a parameter's per-sample gradients, float32 [samples, *shape]."""
        parameter = self._parameters[name]
        gradient = parameter.grad_sample
        if gradient is None:  # Opacus waits for a use of it that did not reach the loss
            gradient = getattr(parameter, "_current_grad_sample", None)
        if gradient is None:
            return torch.zeros(samples, *parameter.shape, device=parameter.device)
        if gradient.shape[0] != samples:
            raise FederationError(
                f"parameter {name!r} cannot be trained privately: expected gradients of "
                f"{samples} samples, found {gradient.shape[0]} rows; keep the batch in the first "
                "dimension of every layer's input"
            )
        return cast(Tensor, gradient.float())

    def _check(self, gradients: dict[str, Tensor]) -> None:
        """Refuse a model with gradients that the hooks do not see.

        A parameter is looked at until it has had a gradient to look at: behind projections that
        start at zero there is none in the first step.
        """
        # A parameter that a later normalisation cancels has a gradient of rounding errors only.
        norms = torch.stack([gradient.norm() for gradient in gradients.values()])
        floor = _ROUNDING * float(norms.max())  # one wait for the device, not one a parameter
        if not isfinite(floor):
            return  # says nothing: look at the next batch
        for name in sorted(self._unchecked):
            gradient = gradients[name]
            found, expected = gradient.sum(0), self._parameters[name].grad
            expected = torch.zeros_like(found) if expected is None else expected
            difference = float((found - expected).norm())
            size = float(gradient.norm() + expected.norm())
            if not isfinite(difference) or size <= floor:
                continue  # says nothing: look at the next batch
            if difference > _MISMATCH * size + floor:
                raise FederationError(
                    f"parameter {name!r} cannot be trained privately: its per-sample gradients "
                    "do not add up to its gradient; use it through its own layer only, with one "
                    "tensor as input"
                )
            self._unchecked.discard(name)

    def _halve(self) -> None:
        if self._physical_batch == 1:
            raise FederationError("one study does not fit into GPU memory: use a smaller model")
        self._physical_batch //= 2
        torch.cuda.empty_cache()

    def _forget_samples(self) -> None:
        """Drop what the hooks keep of samples, also after a pass that was cut short."""
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in module.__dict__:
                    delattr(module, name)
        for parameter in self._parameters.values():
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None


def _norms(gradients: list[Tensor]) -> Tensor:
    """Return the norms, [b], of the samples' gradients over all parameters, [b, *shape] each."""
    each = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]
    return torch.stack(each, dim=1).norm(dim=1)


def _silence_non_finite(gradients: list[Tensor]) -> None:
    """Set to zero, in place, every parameter's gradient of a sample with an infinity or NaN."""
    sums = torch.stack([gradient.reshape(len(gradient), -1).sum(1) for gradient in gradients])
    # A sum is finite only if all its terms are. One that overflows belongs to a gradient whose
    # norm would overflow as well and be clipped to zero.
    finite = sums.isfinite().all(dim=0)
    if not bool(finite.all()):
        for gradient in gradients:
            gradient[~finite] = 0
