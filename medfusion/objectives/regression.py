"""Regression objective: a number from a public range, which may be unknown.

B batch, L targets.
"""

from torch import Tensor
from torch.nn import functional

from medfusion.objectives.objective import Objective
from medfusion.objectives.options import HuberLoss, MseLoss


class Regression(Objective):
    """An error between outputs [B, L] and targets, both as shares of the public range.

    An output of -1 means ``low``, 1 ``high``; so learning rates and clipping norms keep their
    meaning whatever the target's unit.
    """

    def __init__(self, low: float, high: float, loss: MseLoss | HuberLoss) -> None:
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._loss = loss

    def per_sample_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return each study's loss, float32 [B]; an unknown target counts 0."""
        scaled = (labels - self._middle) / self._half
        if isinstance(self._loss, HuberLoss):
            errors = functional.huber_loss(
                outputs.float(), scaled, reduction="none", delta=self._loss.delta
            )
        else:
            errors = functional.mse_loss(outputs.float(), scaled, reduction="none")
        return (errors * known).mean(dim=1)
