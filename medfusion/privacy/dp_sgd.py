"""Steps of differentially private SGD: clip each patient's gradient, sum, add noise [1]_.

Per-sample gradients come from book-keeping (`medfusion.privacy.book_keeping`), or from Opacus'
hooks where a layer has no rule there. They are clipped and added up by `Clipper`, and noised by
`medfusion.privacy.gaussian_noise`, all set up from a `DpPlan` and from nothing else.

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
weight that is used outside its layer   refused before the first step, by a look at public
                                        samples; no refusal depends on a patient's values
layer that mixes samples                not looked for: the models' contract excludes it
======================================  ===================================================

Sums in floating point move by more than C when one patient's record is emptied, because
everything else is rounded anew [2]_. The noise is therefore sized for (1 + `SUM_SLACK`) C. The
patient's place in the batch stays, so of the sums of m = `ROWS_IN_FLOAT32` clipped gradients,
which are float32, one differs and no other; they are added up in float64, which is off by another
4e-6 C at most with a million of patients in a step. A float32 sum of m clipped gradients is off
by at most m^2 2^-24 C in L2 norm, in whatever order it is taken: m units of 2^-24, of the sum of
the norms. Two such sums make 1.3e-4 C at m = 32, whatever the batch. What is left of the slack is
for norms: sums of squares along n innermost entries of a gradient are float32, all else of a norm
is float64, so a norm is off by n 2^-25 of itself at most: 1.4e-4 at n = 4608, the filters of 512
channels.

References
----------
.. [1] Abadi et al., "Deep learning with differential privacy", CCS 2016.
.. [2] Casacuberta et al., "Widespread underestimation of sensitivity in differentially private
   libraries and how to fix it", CCS 2022.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medfusion.privacy.adaptive_norm import AdaptiveNorm, split_noise
from medfusion.privacy.book_keeping.engine import BookKeeping
from medfusion.privacy.clipping import ClippedSums, Clipper, GradientEngine
from medfusion.privacy.gaussian_noise import noised
from medfusion.privacy.gradient_check import PUBLIC_SAMPLES, check_gradients
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.training.device import as_fits

# How far float32 may carry a patient's contribution beyond the clipping norm, as a share of it.
SUM_SLACK = 1e-3


def engine_for(model: nn.Module) -> GradientEngine:
    """Return the fastest engine that knows all of a model's trained layers."""
    if BookKeeping.knows(model):
        return BookKeeping(model)
    from medfusion.privacy.opacus_hooks import OpacusHooks  # takes a second to import

    return OpacusHooks(model)


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
    public_losses
        Returns the losses, float32 [rows], of that many samples that are no patient's, alike in
        shape and type. On entering, the model's gradients are checked on them.
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
        keystream: Keystream,
        physical_batch: int,
        public_losses: Callable[[int], Tensor],
        before_update: Callable[[], None] | None = None,
        adaptive: AdaptiveNorm | None = None,
    ) -> None:
        self._plan = plan
        self._adaptive = adaptive
        noise = plan.noise_multiplier
        self._noise_multiplier = split_noise(noise)[0] if adaptive else noise
        self._keystream = keystream
        self._before_update = before_update
        self._physical_batch = physical_batch
        self._public_losses = public_losses
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        norm = adaptive.value if adaptive else plan.max_grad_norm
        self._engine = engine_for(model)
        self._clipper = Clipper(model, self._engine, max_grad_norm=norm)
        self._optimizer = optimizer

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)  # a refusal leaves no hooks behind
            self._check()
            stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.close()
        for parameter in self._parameters.values():
            parameter.grad = None

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
            clip = partial(self._clip, losses, index[done:])
            part, self._physical_batch = as_fits(clip, self._physical_batch)
            for name, gradient in part.gradients.items():
                totals[name] += gradient
            loss += part.loss
            if self._adaptive is not None:
                self._adaptive.observe(part.norms)
            done += self._physical_batch
        self._update(sums)
        if self._adaptive is not None:
            self._adaptive.move()
            self._clipper.max_grad_norm = self._adaptive.value
        return loss

    def _clip(
        self, losses: Callable[[Tensor], Tensor], index: Tensor, physical_batch: int
    ) -> ClippedSums:
        return self._clipper.clip(partial(losses, index[:physical_batch]))

    def _check(self) -> None:
        """Refuse a model that cannot be trained privately; a public function of its weights."""

        def check(physical_batch: int) -> None:
            losses = partial(self._public_losses, min(PUBLIC_SAMPLES, physical_batch))
            check_gradients(self._parameters, self._engine, losses)

        _, self._physical_batch = as_fits(check, self._physical_batch)

    def _update(self, sums: Tensor) -> None:
        """Take the optimiser's step on clipped sums, float64 [P], once they have their noise."""
        released = noised(
            sums.cpu().numpy(),
            sensitivity=(1 + SUM_SLACK) * self._clipper.max_grad_norm,
            noise_multiplier=self._noise_multiplier,
            keystream=self._keystream,
        )
        # By the expected batch, never by the drawn one.
        mean = torch.from_numpy(released / self._plan.expected_batch)
        gradients = self._shaped(mean.to(sums.device, torch.float32))
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        if self._before_update is not None:
            self._before_update()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _shaped(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a vector [P], one in the shape of each parameter."""
        parts = torch.split(flat, [p.numel() for p in self._parameters.values()])
        shaped = zip(self._parameters.items(), parts, strict=True)
        return {name: part.view(parameter.shape) for (name, parameter), part in shaped}
