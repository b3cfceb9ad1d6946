"""Steps of differentially private SGD: clip each patient's gradient, sum, add noise [1]_.

Opacus computes per-sample gradients (hooks) and clips them (`DPOptimizer`); the noise is ours
(`medfusion.privacy.gaussian_noise`). All is set up from a `DpPlan` and from nothing else. What
this module adds holds a patient's contribution to a step at C in cases that Opacus leaves open.

======================================  ===================================================
case                                    what happens
======================================  ===================================================
gradient in bfloat16                    cast to float32 before norms, clipping and sums
gradient with an infinity or NaN        that patient contributes zero
parameter that a batch did not use      zero per-sample gradients, noise as usual
empty batch                             no forward pass; a step of noise alone
logical batch above the physical one    clipped sums add up over chunks, in float64; noise
                                        comes once
chunk that does not fit on the GPU      the physical batch is halved, that chunk repeated
layer that mixes or hides samples       refused before the first update
======================================  ===================================================

Sums in floating point move by more than C when one patient's record is emptied, because
everything else is rounded anew [2]_. The noise is therefore sized for (1 + `SUM_SLACK`) C. The
patient's place in the batch stays, so one chunk of b samples differs and no other. A float32
sum of b clipped gradients is off by at most b^2 2^-24 C in L2 norm, in whatever order it is
taken: b units of 2^-24, of the sum of the norms. Two such sums make .012% of C at b = 32, and at
b = 90 they leave 3e-5 of the slack to the rounding of the norms. This is the worst case; errors
of both signs, as they are, stay far below it at larger b as well.

References
----------
.. [1] Abadi et al., "Deep learning with differential privacy", CCS 2016.
.. [2] Casacuberta et al., "Widespread underestimation of sensitivity in differentially private
   libraries and how to fix it", CCS 2022.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from types import TracebackType
from typing import Any, NoReturn, Self, cast

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from medfusion.errors import FederationError
from medfusion.privacy import layer_gradients as layer_gradients  # registers them
from medfusion.privacy.gaussian_noise import noised
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan

# How far float32 may carry a patient's contribution beyond the clipping norm, as a share of it.
SUM_SLACK = 1e-3

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
    keystream
        For the noise of these steps alone. It is drawn on the CPU, whatever the device.
    physical_batch
        Most samples in one forward and backward pass.
    before_update
        Called once the noised mean gradient is in place, before the optimiser moves weights:
        what it changes is post-processing as long as it reads weights and gradients only.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        plan: DpPlan,
        *,
        keystream: Keystream,
        physical_batch: int,
        before_update: Callable[[], None] | None = None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._keystream = keystream
        self._before_update = before_update
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
        self._optimizer = _ClippingOnly(
            optimizer,
            noise_multiplier=0.0,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch,
        )
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
        device = next(iter(self._parameters.values())).device
        size = sum(p.numel() for p in self._parameters.values())
        sums = torch.zeros(size, dtype=torch.float64, device=device)
        totals = self._shaped(sums)
        loss = torch.zeros((), device=device)
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
        self._update(sums)
        return loss

    def _update(self, sums: Tensor) -> None:
        """Take the optimiser's step on clipped sums, float64 [P], once they have their noise."""
        released = noised(
            sums.cpu().numpy(),
            sensitivity=(1 + SUM_SLACK) * self._plan.max_grad_norm,
            noise_multiplier=self._plan.noise_multiplier,
            keystream=self._keystream,
        )
        # By the expected batch, never by the drawn one.
        mean = torch.from_numpy(released / self._plan.expected_batch)
        gradients = self._shaped(mean.to(sums.device, torch.float32))
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        if self._before_update is not None:
            self._before_update()
        self._optimizer.original_optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _shaped(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a vector [P], one in the shape of each parameter."""
        parts = flat.split([p.numel() for p in self._parameters.values()])
        shaped = zip(self._parameters.items(), parts, strict=True)
        return {name: part.view(parameter.shape) for (name, parameter), part in shaped}

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


class _ClippingOnly(DPOptimizer):  # type: ignore[misc]
    """Opacus' clipping without its noise, and so without a step of its own."""

    def step(self, closure: Callable[[], float] | None = None) -> NoReturn:
        """Refuse: raises `RuntimeError`."""
        raise RuntimeError("Expected PrivateSteps.step, which adds the noise.")


def _silence_non_finite(gradients: list[Tensor]) -> None:
    """Set to zero, in place, every parameter's gradient of a sample with an infinity or NaN."""
    sums = torch.stack([gradient.reshape(len(gradient), -1).sum(1) for gradient in gradients])
    # A sum is finite only if all its terms are. One that overflows belongs to a gradient whose
    # norm would overflow as well and be clipped to zero.
    finite = sums.isfinite().all(dim=0)
    if not bool(finite.all()):
        for gradient in gradients:
            gradient[~finite] = 0
