"""What training a model on one site's studies needs, private or not."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from medfusion.errors import FederationError
from medfusion.training.options import TrainingOptions

Precision = Literal["auto", "float32", "bfloat16"]


class TrainingStudies(Protocol):
    """A site's training studies as tensors.

    ``labels`` and ``known`` are float32 [N, L], ``patients`` int64 [N]; all on the CPU.
    """

    @property
    def labels(self) -> Tensor:
        """0 or 1, and 0 where unknown."""
        ...

    @property
    def known(self) -> Tensor:
        """1 where the label is known, else 0."""
        ...

    @property
    def patients(self) -> Tensor:
        """Each study's patient, as a number."""
        ...

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return the model's inputs for the studies at ``index`` (int64 [B], on the CPU)."""
        ...


@dataclass
class LocalRun:
    """A model, its optimiser and its studies during one round."""

    model: nn.Module
    studies: TrainingStudies
    trainable: list[nn.Parameter]
    optimizer: Optimizer
    pull: Callable[[], None] | None
    device: torch.device
    physical_batch: int
    autocast: Callable[[], AbstractContextManager[object]]
    modality_dropout: float

    def inputs(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the inputs of some studies, each of which may have lost modalities."""
        inputs = self.studies.inputs(index, self.device)
        if self.modality_dropout:
            from medfusion.models.fusion import drop_modalities

            inputs = drop_modalities(inputs, self.modality_dropout, generator)
        return inputs

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels and known of some studies, each [B, L]."""
        labels, known = self.studies.labels[index], self.studies.known[index]
        if self.device.type == "cpu":
            return labels, known
        return labels.to(self.device), known.to(self.device)

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the model's logits, [B, L]."""
        with self.autocast():
            logits = self.model(inputs)
        assert isinstance(logits, Tensor)
        return logits

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        for parameter in self.trainable:  # a third of the time of Optimizer.zero_grad
            parameter.grad = None

    def halve(self) -> None:
        """Go on with half the physical batch, after a pass that ran out of memory."""
        if self.physical_batch == 1:
            raise FederationError("one study does not fit into GPU memory: use a smaller model")
        self.physical_batch //= 2
        torch.cuda.empty_cache()


def make_optimizer(trainable: list[nn.Parameter], options: TrainingOptions) -> Optimizer:
    """Return a new optimiser, which remembers nothing of earlier rounds."""
    rate, decay = options.learning_rate, options.weight_decay
    # What torch would choose as well, but after a look at each parameter in each step.
    foreach = all(parameter.is_cuda for parameter in trainable)
    if options.optimizer == "sgd":
        return SGD(trainable, rate, momentum=options.momentum, weight_decay=decay, foreach=foreach)
    return AdamW(trainable, rate, weight_decay=decay, foreach=foreach)


def make_proximal_pull(trainable: list[nn.Parameter], mu: float) -> Callable[[], None]:
    """Return a function that adds ``mu * (w - w0)`` to each gradient, w0 being w as of now."""
    received = [parameter.detach().clone() for parameter in trainable]

    def pull() -> None:
        with torch.no_grad():
            for parameter, origin in zip(trainable, received, strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(parameter - origin, alpha=mu)

    return pull


def make_autocast(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a forward pass."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext
