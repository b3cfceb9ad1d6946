"""What every kind of task gives to training: a loss for each study.

B batch, W outputs of the model for a study, L labels.
"""

from abc import ABC, abstractmethod

from torch import Tensor


class Objective(ABC):
    """A loss between a model's outputs and a study's labels.

    Every denominator is a constant of the task: a study's loss depends on that study alone, so
    that its gradient is what it adds to the sum.
    """

    @abstractmethod
    def per_sample_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return each study's loss, float32 [B].

        Parameters
        ----------
        outputs
            Real [B, W], of any floating type; the loss is computed in float32.
        labels
            Float32 [B, L], as in `medfusion.data.studies.Studies`; 0 where unknown.
        known
            Float32 [B, L], 1 where the label is known, else 0.
        """

    def mean_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return the mean of `per_sample_loss` over the batch, a float32 scalar."""
        return self.per_sample_loss(outputs, labels, known).mean()
