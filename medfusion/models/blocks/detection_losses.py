"""The four losses of Faster R-CNN (Ren et al. 2015, arXiv 1506.01497), each image's own.

Every one is divided by a constant number of anchors or proposals, never by what a batch or an
image happens to hold, so that an image's loss depends on that image alone.

Shapes: B batch, n anchors or proposals of an image, C classes with "nothing" in front.
"""

import torch
from torch import Tensor
from torch.nn import functional

from medfusion.models.blocks.detection_targets import Targets

_BEND = 1.0 / 9.0  # where the loss of a delta turns from square to straight


def anchor_losses(
    objectness_Bn: Tensor, deltas_Bn4: Tensor, targets: Targets, *, drawn: int
) -> tuple[Tensor, Tensor]:
    """Return the losses [B] of saying where something is, and of how anchors are moved there."""
    truth = targets.classes.to(objectness_Bn.dtype)
    each = functional.binary_cross_entropy_with_logits(objectness_Bn, truth, reduction="none")
    return _mean(each, targets.weights, drawn), _moving_loss(deltas_Bn4, targets, drawn)


def proposal_losses(
    logits_BnC: Tensor, deltas_BnC4: Tensor, targets: Targets, *, drawn: int
) -> tuple[Tensor, Tensor]:
    """Return the losses [B] of saying what is there, and of how proposals are moved there."""
    of_truth = logits_BnC.log_softmax(dim=-1).gather(-1, targets.classes[..., None])
    chosen = targets.classes[..., None, None].expand(-1, -1, 1, 4)
    deltas_Bn4 = deltas_BnC4.gather(2, chosen).squeeze(2)
    return _mean(-of_truth.squeeze(-1), targets.weights, drawn), _moving_loss(
        deltas_Bn4, targets, drawn
    )


def _moving_loss(deltas_Bn4: Tensor, targets: Targets, drawn: int) -> Tensor:
    each = functional.smooth_l1_loss(deltas_Bn4, targets.deltas, beta=_BEND, reduction="none")
    return _mean(each.sum(dim=-1), targets.weights * (targets.classes > 0), drawn)


def _mean(each_Bn: Tensor, weights_Bn: Tensor, drawn: int) -> Tensor:
    # What weighs nothing may be infinite in a model that diverges elsewhere.
    counted = torch.where(weights_Bn > 0, each_Bn * weights_Bn, 0.0)
    return counted.sum(dim=1) / drawn
