"""Multilabel objective: independent binary labels, some of them unknown.

B batch, L labels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from medfusion.objectives.focusing import asymmetric, focal
from medfusion.objectives.objective import Objective
from medfusion.objectives.options import AsymmetricLoss, BceLoss, FocalLoss

MultilabelLoss = BceLoss | FocalLoss | AsymmetricLoss
BCE = BceLoss()


class Multilabel(Objective):
    """The losses below as an objective; the outputs are logits [B, L]."""

    def __init__(self, loss: MultilabelLoss = BCE) -> None:
        self._loss = loss

    def per_sample_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return each study's loss, float32 [B]."""
        return per_sample_loss(outputs, labels, known, self._loss)

    def mean_loss(self, outputs: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Return the mean loss, a float32 scalar."""
        return mean_loss(outputs, labels, known, self._loss)


def per_sample_loss(
    logits: Tensor, labels: Tensor, known: Tensor, loss: MultilabelLoss = BCE
) -> Tensor:
    """Return each sample's loss, summed over its known labels, over L.

    The denominator is the task's number of labels, not the batch's number of known ones, so
    that no sample's loss depends on another sample.

    Parameters
    ----------
    logits
        Real [B, L], of any floating type; the loss is computed in float32.
    labels
        Float32 [B, L], 0 or 1; 0 where unknown.
    known
        Float32 [B, L], 1 where the label is known, else 0.
    loss
        Which loss, with its constants.

    Returns
    -------
    Tensor
        Float32 [B].
    """
    if isinstance(loss, BceLoss):
        losses = functional.binary_cross_entropy_with_logits(
            logits.float(), labels, weight=known, reduction="none"
        )
    elif isinstance(loss, FocalLoss):
        losses = known * focal(logits.float(), labels, gamma=loss.gamma)
    else:
        losses = known * asymmetric(
            logits.float(),
            labels,
            gamma_positive=loss.gamma_positive,
            gamma_negative=loss.gamma_negative,
            clip=loss.clip,
        )
    return losses.mean(dim=1)


def mean_loss(logits: Tensor, labels: Tensor, known: Tensor, loss: MultilabelLoss = BCE) -> Tensor:
    """Return the mean of `per_sample_loss` over the batch, a float32 scalar.

    For ``bce`` one operation instead of three, which counts where a whole step takes a tenth
    of a millisecond.
    """
    if isinstance(loss, BceLoss):
        return functional.binary_cross_entropy_with_logits(logits.float(), labels, weight=known)
    return per_sample_loss(logits, labels, known, loss).mean()


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each label, float32 [B, L]."""
    return torch.sigmoid(logits.float())
