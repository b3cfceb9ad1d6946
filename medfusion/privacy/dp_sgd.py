"""Steps of differentially private SGD: clip each patient's gradient, sum, add noise [1]_.

Per-sample gradients come from book-keeping (`medfusion.privacy.book_keeping`), or from Opacus'
hooks where a layer has no rule there. They are clipped and added up by `Clipper`, noised by Opacus'
`DPOptimizer`, all set up from a `DpPlan` and from nothing else. A patient's contribution to a step
is at most C in every case.

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

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from medfusion.errors import FederationError
from medfusion.privacy.book_keeping.engine import BookKeeping
from medfusion.privacy.clipping import Clipper, GradientEngine
from medfusion.privacy.opacus_hooks import OpacusHooks
from medfusion.privacy.plan import DpPlan


def engine_for(model: nn.Module) -> GradientEngine:
    """Return the fastest engine that knows all of a model's trained layers."""
    return BookKeeping(model) if BookKeeping.knows(model) else OpacusHooks(model)


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
    ) -> None:
        self._physical_batch = physical_batch
        # Any: Opacus hangs attributes of its own on parameters.
        self._parameters: dict[str, Any] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._clipper = Clipper(model, engine_for(model), max_grad_norm=plan.max_grad_norm)
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch,
            loss_reduction="mean",  # divides by the expected batch, never by the drawn one
            generator=generator,
        )
        if before_update is not None:
            self._optimizer.attach_step_hook(lambda _: before_update())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clipper.close()
        for parameter in self._parameters.values():
            parameter.grad = None
            for name in ("summed_grad", "grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)

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
                part = self._clipper.clip(partial(losses, chunk))
            if part is None:
                self._halve()
                continue
            for name, gradient in part.gradients.items():
                totals[name] += gradient
            loss += part.loss
            done += len(chunk)
        for name, parameter in self._parameters.items():
            parameter.summed_grad = totals[name]
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        self._optimizer.step()  # has nothing left to clip: adds noise, divides, updates
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _halve(self) -> None:
        if self._physical_batch == 1:
            raise FederationError("one study does not fit into GPU memory: use a smaller model")
        self._physical_batch //= 2
        torch.cuda.empty_cache()
