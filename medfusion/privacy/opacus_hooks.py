"""Per-sample gradients by Opacus' hooks: for layers that book-keeping has no rule for.

They also are what book-keeping is compared with.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn

from medfusion.errors import FederationError
from medfusion.privacy import layer_gradients as layer_gradients  # registers them
from medfusion.privacy.clipping import SampleGradients


class OpacusHooks:
    """Per-sample gradients of any model that Opacus takes.

    Parameters
    ----------
    model
        Carries the hooks until `close`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # Any: Opacus hangs attributes of its own on parameters.
        self._parameters: dict[str, Any] = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        # The hooks of the first layer fire without a gradient of its input, as they should.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        # "sum": the loss that we differentiate is a sum over samples, each of its own.
        self._hooks = GradSampleHooks(model, loss_reduction="sum")

    def gradients(self, losses: Callable[[], Tensor]) -> SampleGradients:
        """Run ``losses`` and differentiate what it returns.

        Raises
        ------
        FederationError
            If a parameter has gradients of other rows than samples.
        """
        try:
            return self._differentiate(losses)
        finally:
            self._forget_samples()

    def compared(self, losses: Callable[[], Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradients of the samples, and of their sum, by name; raises the same."""
        try:
            by_sample = self._differentiate(losses).by_sample
            by_batch = {name: value.grad for name, value in self._parameters.items()}
            return by_sample, {n: value for n, value in by_batch.items() if value is not None}
        finally:
            self._forget_samples()

    def _differentiate(self, losses: Callable[[], Tensor]) -> SampleGradients:
        """Return gradients of the samples, and leave those of the batch in ``grad``."""
        each = losses()
        torch.autograd.backward(each.sum())
        found = {name: self._per_sample(name, len(each)) for name in self._parameters}
        by_sample = {name: value for name, value in found.items() if value is not None}
        return SampleGradients(losses=each.detach(), by_sample=by_sample)

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.cleanup()
        self._forget_samples()

    def _per_sample(self, name: str, samples: int) -> Tensor | None:
        """Return a parameter's gradients, float32 [samples, *shape]; None if it had no part."""
        parameter = self._parameters[name]
        gradient: Tensor | None = parameter.grad_sample
        if gradient is None:  # Opacus waits for a use of it that did not reach the loss
            gradient = getattr(parameter, "_current_grad_sample", None)
        if gradient is None:
            return None
        if gradient.shape[0] != samples:
            raise FederationError(
                f"parameter {name!r} cannot be trained privately: expected gradients of "
                f"{samples} samples, found {gradient.shape[0]} rows; keep the batch in the first "
                "dimension of every layer's input"
            )
        return gradient.to(torch.promote_types(gradient.dtype, torch.float32))

    def _forget_samples(self) -> None:
        """Drop what the hooks keep of samples, also after a pass that was cut short."""
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in module.__dict__:
                    delattr(module, name)
        for parameter in self._parameters.values():
            parameter.grad = None
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None
