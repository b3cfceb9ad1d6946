"""What training a model on one site's studies needs, private or not."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from medfusion.models.contract import FUSED, LABEL_STATES, Model
from medfusion.models.fusion import drop_modalities, presence
from medfusion.objectives.objective import Objective
from medfusion.training.augmentation import augment
from medfusion.training.label_masking import reveal_labels, still_to_learn

Precision = Literal["auto", "float32", "bfloat16"]


class TrainingStudies(Protocol):
    """A site's training studies as tensors.

    ``labels`` and ``known`` are float32 [N, L], ``patients`` int64 [N]; all on the CPU.
    """

    @property
    def labels(self) -> Tensor:
        """As in `medfusion.data.studies.Studies`; 0 where unknown."""
        ...

    @property
    def known(self) -> Tensor:
        """1 where the label is known, else 0."""
        ...

    @property
    def patients(self) -> Tensor:
        """Each study's patient, as a number."""
        ...

    @property
    def column_features(self) -> Tensor:
        """Int64 [K]: the number of the feature that each tabular column belongs to."""
        ...

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return the model's inputs for the studies at ``index`` (int64 [B], on the CPU)."""
        ...


@dataclass(frozen=True)
class Streams:
    """CPU generators of what training hides and tells.

    One for each use: where two uses share a stream, what a study gets depends on how batches
    are cut into pieces.
    """

    changes: torch.Generator
    modalities: torch.Generator
    labels: torch.Generator


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
    auxiliary_heads: float
    masked_labels: float
    objective: Objective
    augmented: bool
    views: int
    small_images: bool

    @property
    def plain(self) -> bool:
        """Whether a study's loss is that of the logits alone, over all its known labels."""
        return not (self.auxiliary_heads or self.masked_labels or self.views > 1)

    @property
    def studies_at_once(self) -> int:
        """Most studies in one backward pass, each with all its views."""
        return max(1, self.physical_batch // self.views)

    def inputs(self, index: Tensor, streams: Streams) -> dict[str, Tensor]:
        """Return the inputs of some studies, [B * views, ...], changed as training wants them.

        Each view may be augmented, have its image halved, have lost modalities, and be told
        labels. The views of a study stand together: so what a study gets does not depend on how
        batches are cut.
        """
        if self.views > 1:
            index = index.repeat_interleave(self.views)
        inputs = self.studies.inputs(index, self.device)
        if self.augmented:
            inputs = augment(inputs, self.studies.column_features, streams.changes)
        if self.small_images and "image" in inputs:
            pool = functional.avg_pool2d if inputs["image"].ndim == 4 else functional.avg_pool3d
            inputs = {**inputs, "image": pool(inputs["image"], 2)}
            inputs.pop("image_features", None)  # of the image at full size
        if self.modality_dropout:
            inputs = drop_modalities(inputs, self.modality_dropout, streams.modalities)
        if self.masked_labels:
            labels, known = self.studies.labels[index], self.studies.known[index]
            states = reveal_labels(labels, known, self.masked_labels, streams.labels)
            inputs = {**inputs, LABEL_STATES: states.to(self.device)}
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

    def losses(self, inputs: dict[str, Tensor], labels: Tensor, known: Tensor) -> Tensor:
        """Return each study's loss, float32 [b], with those of the modalities' own heads.

        It is the mean over the study's views, which ``inputs`` [b * views, ...] holds; each goes
        through the model in a pass of its own, so that the first dimension counts studies there.
        A label that the inputs tell does not count, nor does the own head of a modality that
        the study lacks. Denominators are constant, so a loss depends on its study alone.
        """
        if self.views == 1:
            return self._losses(inputs, labels, known)
        views = (
            {name: tensor[view :: self.views] for name, tensor in inputs.items()}
            for view in range(self.views)
        )
        return torch.stack([self._losses(view, labels, known) for view in views]).mean(dim=0)

    def _losses(self, inputs: dict[str, Tensor], labels: Tensor, known: Tensor) -> Tensor:
        """Return the loss of one view of each study, float32 [b]."""
        known = still_to_learn(known, inputs)
        if not self.auxiliary_heads:
            return self.objective.per_sample_loss(self.logits(inputs), labels, known)
        with self.autocast():
            outputs = cast(Model, self.model).outputs(inputs)
        total = self.objective.per_sample_loss(outputs[FUSED], labels, known)
        here = presence(inputs)
        for name, logits in outputs.items():
            if name != FUSED:
                counts = known * here[name].unsqueeze(1)
                own = self.objective.per_sample_loss(logits, labels, counts)
                total = total + self.auxiliary_heads * own
        return total

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        for parameter in self.trainable:  # a third of the time of Optimizer.zero_grad
            parameter.grad = None


def make_pull(
    trainable: Mapping[str, nn.Parameter], *, mu: float, shift: Mapping[str, Tensor] | None
) -> Callable[[], None] | None:
    """Return what adds ``mu * (w - w0) + shift`` to each gradient, w0 being w as of now.

    None if there is nothing to add. What ``shift`` does not name is not shifted.
    """
    received = {n: parameter.detach().clone() for n, parameter in trainable.items()} if mu else {}
    moved = {n: tensor.to(trainable[n].device) for n, tensor in (shift or {}).items()}
    if not (received or moved):
        return None

    def pull() -> None:
        with torch.no_grad():
            for name, parameter in trainable.items():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if received:
                    parameter.grad.add_(parameter - received[name], alpha=mu)
                if name in moved:
                    parameter.grad.add_(moved[name])

    return pull


def make_autocast(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a forward pass."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext
