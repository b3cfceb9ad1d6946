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
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from medfusion.models.blocks.anchors import ANCHOR_CODER, BOX_CODER

_ANCHOR_MATCHER = Matcher(0.7, 0.3, allow_low_quality_matches=True)
_PROPOSAL_MATCHER = Matcher(0.5, 0.5, allow_low_quality_matches=False)
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
    """

    classes: Tensor
    deltas: Tensor
    weights: Tensor


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
    everywhere = torch.ones(anchors_BA4.shape[:2], dtype=torch.bool, device=boxes_BM4.device)
    matched, which_BA = _matched(_ANCHOR_MATCHER, anchors_BA4, boxes_BM4, classes_BM, everywhere)
    positive = matched > 0
    deltas = _deltas(ANCHOR_CODER, anchors_BA4, boxes_BM4, which_BA, positive)
    weights = expected_weights(
        positive, matched == 0, drawn=ANCHORS_DRAWN, positive_share=POSITIVE_ANCHORS
    )
    return Targets(positive.long(), deltas, weights.to(deltas.dtype))


@torch.no_grad()
def proposal_targets(
    proposals_BR4: Tensor, valid_BR: Tensor, boxes_BM4: Tensor, classes_BM: Tensor, *, drawn: int
) -> Targets:
    """Return the targets of proposals; those that are not ``valid_BR`` weigh nothing.

    Other parameters are those of `anchor_targets`; ``drawn`` as in `expected_weights`.
    """
    matched, which_BR = _matched(_PROPOSAL_MATCHER, proposals_BR4, boxes_BM4, classes_BM, valid_BR)
    positive = matched > 0
    deltas = _deltas(BOX_CODER, proposals_BR4, boxes_BM4, which_BR, positive)
    weights = expected_weights(
        positive, matched == 0, drawn=drawn, positive_share=POSITIVE_PROPOSALS
    )
    return Targets(matched.clamp(min=0), deltas, weights.to(deltas.dtype))


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
    matcher: Matcher, found_BR4: Tensor, boxes_BM4: Tensor, classes_BM: Tensor, valid_BR: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the class that each box found is matched with, and which drawn box that is.

    int64 [B, R] each; the class is 0 for nothing, and -1 for what lies between.
    """
    kind = torch.zeros(found_BR4.shape[:2], dtype=torch.int64, device=found_BR4.device)
    which = torch.zeros_like(kind)
    for image, (found, boxes, classes) in enumerate(
        zip(found_BR4, boxes_BM4, classes_BM, strict=True)
    ):
        there = torch.nonzero(classes > 0).flatten()
        if len(there):
            matches = matcher(box_iou(boxes[there].to(found.dtype), found))
            which[image] = there[matches.clamp(min=0)]
            kind[image] = classes[which[image]]
            kind[image][matches == Matcher.BELOW_LOW_THRESHOLD] = 0
            kind[image][matches == Matcher.BETWEEN_THRESHOLDS] = -1
    return kind.masked_fill(~valid_BR, -1), which


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
