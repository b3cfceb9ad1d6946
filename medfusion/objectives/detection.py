"""Detection objective: boxes with labels, in studies that were looked at for every label.

B batch, L labels.
"""

import torch
from torch import Tensor

from medfusion.objectives.objective import Objective
from medfusion.objectives.options import DetectionLoss


class Detection(Objective):
    """A weighted sum of the losses that a detector in training returns.

    The detector compares itself with what was drawn, since its second stage looks at proposals
    of the first: so its outputs in training are losses, [B, 4 or 5], in the order of
    `medfusion.models.mdf_net.LOSSES`, each of which depends on its own study alone.
    """

    def __init__(self, loss: DetectionLoss) -> None:
        stages = (loss.objectness, loss.anchor_boxes, loss.classes, loss.boxes)
        self._weights = (*stages, loss.masks)

    def per_sample_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return each study's loss, float32 [B]; 0 where some label is unknown.

        What is not drawn would count as absent, which of an unknown label nobody said.
        """
        weights = torch.tensor(self._weights[: outputs.shape[1]], device=outputs.device)
        return (outputs.float() * weights).sum(dim=1) * (known > 0).all(dim=1)
