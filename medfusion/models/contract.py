"""What every model keeps to, and what follows for its state.

1. ``forward(inputs) -> logits [B, L]``; ``inputs`` holds the keys of the model's modalities:
   ``image`` float32 [B, C, H, W] or [B, C, X, Y, Z], ``image_present`` bool [B], ``tabular``
   float32 [B, K, 3 + L], ``tokens`` int64 [B, T] (0 pads; all 0: no note). Where what nothing
   trains ran in advance, also ``image_features`` float32 [B, F], those of the image as it is, and
   ``text_states`` float32 [B, T or 1, S]. In training it may
   also hold ``label_states`` int64 [B, L]: what is told of each label (without it: nothing).
   ``outputs`` returns the same logits, beside those of the modalities' own heads.
   A detector's row is [D, 6], see `medfusion.models.mdf_net`. Its training inputs also hold
   ``boxes`` float32 [B, M, 4], corners in pixels, and ``box_classes`` int64 [B, M], from 1, 0
   where there is no box; with them it returns, in training mode, its losses [B, 4 or 5].
2. A row of the output depends on that row of the inputs alone.
3. Parameters live in leaf layers that receive one tensor; activations are out of place; lookups
   are expanded to [B, n]. So a layer's input and the gradient of its output say what each sample
   adds, which is all that book-keeping and Opacus' hooks look at.
4. Every trainable parameter takes part in every step, whatever is missing from the batch.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfusion.models.initial_weights import InitialWeights
from medfusion.models.spec import FeatureAxis, InputSpec

LABEL_STATES = "label_states"
UNKNOWN, ABSENT, PRESENT = range(3)
FUSED = "fused"
BOXES, BOX_CLASSES = "boxes", "box_classes"


class Model(nn.Module):
    """A network from the inputs of a task to one logit per label.

    Attributes
    ----------
    origin
        In words, which initial weights came from where on this machine; None: all were drawn.
    initial_weights
        What they came from, to be told to others; None: all were drawn.
    """

    origin: str | None = None
    initial_weights: InitialWeights | None = None

    @abstractmethod
    def __init__(self, options: object, spec: InputSpec, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.modalities = modalities

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits [B, L]."""

    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return all that is trained, each [B, L]: ``fused``, what `forward` returns.

        A model with a head for each modality adds their logits, by modality.
        """
        return {FUSED: self(inputs)}

    @abstractmethod
    def label_biases(self) -> Sequence[nn.Parameter]:
        """Parameters of L values each that are the last constants added to labels' logits."""

    def label_weights(self) -> Sequence[nn.Parameter]:
        """Parameters of its own, beside those of shared heads, whose rows belong to one label."""
        return ()

    @abstractmethod
    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Parameters that are indexed by tabular columns, by name, and along which axis."""


def trainable_state(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes and that travel, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def frozen_sha256(model: nn.Module) -> str:
    """Hex digest of the names, types, shapes and values of all frozen parameters.

    The digest of a model without frozen parameters is that of the empty string.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if value.requires_grad:
            continue
        data = value.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
