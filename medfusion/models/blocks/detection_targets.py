"""What anchors and proposals should say, given the boxes that were drawn.

Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) draws, for each image, up to a number of anchors
at random, at most a share of them positive. Here each anchor weighs the chance with which it
would be drawn: the loss is the expectation of theirs over the draws, without their noise, and
nothing about a patient is random. Its denominator is the number, a constant, also where an image
has fewer anchors than that.

Shapes: B batch, A anchors, R proposals, M boxes drawn on an image at most.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from medfusion.models.blocks.anchors import ANCHOR_CODER, BOX_CODER

ANCHORS_DRAWN, POSITIVE_ANCHORS = 256, 0.5
POSITIVE_PROPOSALS = 0.25


class Targets(NamedTuple):
    """What n anchors or proposals should say.

    Attributes
    ----------
    classes
        int64 [B, n]: 0 for nothing; of anchors, 1 for something.
    deltas
        [B, n, 4]: how each is to be moved; 0 where it is nothing.
    weights
        [B, n]: what each counts, at most 1; 0 where it does not.
    drawn
        int64 [B, n]: the drawn box of which each has the largest IoU.
    """

    classes: Tensor
    deltas: Tensor
    weights: Tensor
    drawn: Tensor


@torch.no_grad()
def anchor_targets(anchors_A4: Tensor, boxes_BM4: Tensor, classes_BM: Tensor) -> Targets:
    """Return the targets of anchors, A of them for each image.

    Parameters
    ----------
    anchors_A4
        Corners in pixels.
    boxes_BM4, classes_BM
        Corners in pixels and labels (from 1) of what was drawn; class 0 where nothing was.
    """
    anchors_BA4 = anchors_A4.to(boxes_BM4.dtype).expand(len(boxes_BM4), -1, -1)
    matched, which_BA = _matched(
        anchors_BA4, boxes_BM4, classes_BM, positive=0.7, negative=0.3, best_of_each=True
    )
    positive = matched > 0
    deltas = _deltas(ANCHOR_CODER, anchors_BA4, boxes_BM4, which_BA, positive)
    weights = expected_weights(
        positive, matched == 0, drawn=ANCHORS_DRAWN, positive_share=POSITIVE_ANCHORS
    )
    return Targets(positive.long(), deltas, weights.to(deltas.dtype), which_BA)


@torch.no_grad()
def proposal_targets(
    proposals_BR4: Tensor, valid_BR: Tensor, boxes_BM4: Tensor, classes_BM: Tensor, *, drawn: int
) -> Targets:
    """Return the targets of proposals; those that are not ``valid_BR`` weigh nothing.

    Other parameters are those of `anchor_targets`; ``drawn`` as in `expected_weights`.
    """
    matched, which_BR = _matched(
        proposals_BR4, boxes_BM4, classes_BM, positive=0.5, negative=0.5, best_of_each=False
    )
    matched = matched.masked_fill(~valid_BR, -1)
    positive = matched > 0
    deltas = _deltas(BOX_CODER, proposals_BR4, boxes_BM4, which_BR, positive)
    weights = expected_weights(
        positive, matched == 0, drawn=drawn, positive_share=POSITIVE_PROPOSALS
    )
    return Targets(matched.clamp(min=0), deltas, weights.to(deltas.dtype), which_BR)


def expected_weights(
    positive: Tensor, negative: Tensor, *, drawn: int, positive_share: float
) -> Tensor:
    """Return the chance with which each would be drawn, float32 [B, n].

    Of all positives at most ``positive_share * drawn`` would be drawn, and as many negatives as
    are still missing.

    Parameters
    ----------
    positive, negative
        bool [B, n]; what is neither is never drawn.
    drawn
        How many would be drawn of each image.
    """
    positives = positive.sum(dim=1, keepdim=True)
    negatives = negative.sum(dim=1, keepdim=True)
    chosen = positives.clamp(max=int(positive_share * drawn))
    others = torch.minimum(negatives, drawn - chosen)
    of_positive = chosen / positives.clamp(min=1)
    of_negative = others / negatives.clamp(min=1)
    return positive * of_positive + negative * of_negative


def _matched(
    found_BR4: Tensor,
    boxes_BM4: Tensor,
    classes_BM: Tensor,
    *,
    positive: float,
    negative: float,
    best_of_each: bool,
) -> tuple[Tensor, Tensor]:
    """Return the class that each box found is matched with, and which drawn box that is.

    int64 [B, R] each. A box found is matched with the one drawn of which it has the largest IoU,
    if that is ``positive`` or more; it is nothing (class 0) below ``negative``, and between (-1)
    else. With ``best_of_each``, those that no other beats at some drawn box are matched too. As
    torchvision's ``Matcher``, for all images at once.
    """
    there_BM1 = (classes_BM > 0)[..., None]
    quality_BMR = box_iou(boxes_BM4.to(found_BR4.dtype), found_BR4).masked_fill(~there_BM1, -1.0)
    largest_BR, which_BR = quality_BMR.max(dim=1)
    is_positive = largest_BR >= positive
    if best_of_each:
        best_BM1 = quality_BMR.amax(dim=2, keepdim=True)
        is_best = (quality_BMR == best_BM1) & (best_BM1 > 0) & there_BM1
        is_positive = is_positive | is_best.any(dim=1)
    kind = torch.where(is_positive, classes_BM.gather(1, which_BR), 0)
    between = ~is_positive & (largest_BR >= negative)
    return kind.masked_fill(between, -1), which_BR


def _deltas(
    coder: BoxCoder, found_BR4: Tensor, boxes_BM4: Tensor, which_BR: Tensor, positive_BR: Tensor
) -> Tensor:
    wanted = boxes_BM4.to(found_BR4.dtype).gather(1, which_BR[..., None].expand(-1, -1, 4))
    # Each that is nothing gets itself, since the logarithm of no size is no number.
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=found_BR4.dtype, device=found_BR4.device)
    origin = torch.where(positive_BR[..., None], found_BR4, unit)
    wanted = torch.where(positive_BR[..., None], wanted, unit)
    encoded: Tensor = coder.encode_single(wanted.flatten(0, 1), origin.flatten(0, 1))
    return encoded.reshape(found_BR4.shape)
