"""Multiclass objective: one class for each study, which may be unknown.

B batch, L classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from medfusion.objectives.objective import Objective
from medfusion.objectives.options import CrossEntropyLoss


class Multiclass(Objective):
    """Cross-entropy of the softmax over logits [B, L], times the class's public weight."""

    def __init__(self, loss: CrossEntropyLoss) -> None:
        self._weights = loss.class_weights

    def per_sample_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return each study's loss, float32 [B]; 0 where the class is unknown.

        Weights do not change the denominator, which would couple the studies of a batch.
        """
        losses = -functional.log_softmax(outputs.float(), dim=1) * labels * known
        if self._weights is not None:
            losses = losses * torch.tensor(self._weights, device=losses.device)
        return losses.sum(dim=1)
