"""Anchors of all levels of a pyramid, and proposals and detections made from them.

Everything here runs without gradients, image by image where boxes suppress one another, and
returns a fixed number of boxes for each image, so that a layer behind it sees [B, K, ...].

Shapes: B batch, A anchors, K proposals, D detections, L labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import batched_nms, clip_boxes_to_image

RATIOS = (0.5, 1.0, 2.0)  # height over width
ANCHOR_CODER = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
BOX_CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
_MOST_BEFORE_SUPPRESSION = 1000  # on each level
_PROPOSAL_OVERLAP, _DETECTION_OVERLAP = 0.7, 0.3
_SMALLEST_PROPOSAL, _SMALLEST_DETECTION = 1e-3, 1e-2  # pixels
_LOWEST_SCORE = 0.05


def make_anchors(
    sizes: Sequence[Sequence[float]],
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
) -> list[Tensor]:
    """Return the corners of each level's anchors, float32 [H * W * sizes * ratios, 4].

    Parameters
    ----------
    sizes
        Sides of a level's square anchors in pixels; others have the same area.
    grids
        Height and width of each level's map.
    strides
        Pixels of the image for each of a level's map.
    """
    generator = AnchorGenerator(
        sizes=tuple(tuple(level) for level in sizes), aspect_ratios=(RATIOS,) * len(sizes)
    )
    steps = [[torch.tensor(stride), torch.tensor(stride)] for stride in strides]
    levels: list[Tensor] = generator.grid_anchors([list(grid) for grid in grids], steps)
    return levels


@torch.no_grad()
def propose(
    objectness_BA: Tensor,
    deltas_BA4: Tensor,
    anchors: Sequence[Tensor],
    *,
    image_size: tuple[int, int],
    most: int,
) -> tuple[Tensor, Tensor]:
    """Return the boxes that most look like objects, [B, K, 4], and which of them are any, [B, K].

    Parameters
    ----------
    objectness_BA, deltas_BA4
        Logits, and how each anchor is to be moved.
    anchors
        Of each level; A is their number.
    image_size
        Height and width.
    most
        K; images with fewer proposals are padded with boxes of no size.
    """
    whole = torch.cat(list(anchors)).to(deltas_BA4.dtype)
    counts = [len(level) for level in anchors]
    scores_BA = objectness_BA.nan_to_num(0.0).sigmoid()
    boxes_BA4 = _decode(ANCHOR_CODER, deltas_BA4, whole, image_size)
    boxes_BK4 = boxes_BA4.new_zeros(len(boxes_BA4), most, 4)
    valid_BK = torch.zeros(boxes_BK4.shape[:2], dtype=torch.bool, device=boxes_BK4.device)
    best, levels, first = [], [], 0
    for level, count in enumerate(counts):
        some = scores_BA[:, first : first + count].topk(min(count, _MOST_BEFORE_SUPPRESSION))
        best.append(some.indices + first)
        levels.append(torch.full_like(some.indices[0], level))
        first += count
    chosen, level_of = torch.cat(best, dim=1), torch.cat(levels)
    scores = scores_BA.gather(1, chosen)
    boxes = boxes_BA4.gather(1, chosen[..., None].expand(-1, -1, 4))
    large = _is_large(boxes, _SMALLEST_PROPOSAL)
    for image in range(len(boxes)):
        some_boxes = boxes[image][large[image]]
        some_scores, some_levels = scores[image][large[image]], level_of[large[image]]
        kept = batched_nms(some_boxes, some_scores, some_levels, _PROPOSAL_OVERLAP)[:most]
        boxes_BK4[image, : len(kept)] = some_boxes[kept]
        valid_BK[image, : len(kept)] = True
    return boxes_BK4, valid_BK


@torch.no_grad()
def detect(
    logits_BKC: Tensor,
    deltas_BKC4: Tensor,
    boxes_BK4: Tensor,
    valid_BK: Tensor,
    *,
    image_size: tuple[int, int],
    most: int,
) -> Tensor:
    """Return each image's detections, [B, D, 6]: corners in pixels, score, number of the label.

    The highest scores come first; rows without a detection are 0. A label's boxes suppress one
    another, those of different labels do not.

    Parameters
    ----------
    logits_BKC
        Of no label (the first) and each of the L labels, C = 1 + L.
    deltas_BKC4
        How each label wants the proposal to be moved.
    boxes_BK4, valid_BK
        From `propose`.
    most
        D.
    """
    scores_BKC = logits_BKC.nan_to_num(0.0).softmax(dim=-1)
    labels = scores_BKC.shape[-1] - 1
    found = scores_BKC.new_zeros(len(scores_BKC), most, 6)
    numbers = torch.arange(1, labels + 1, device=found.device).expand(boxes_BK4.shape[1], -1)
    for image, (scores_KC, deltas_KC4, boxes, valid) in enumerate(
        zip(scores_BKC, deltas_BKC4, boxes_BK4, valid_BK, strict=True)
    ):
        moved = [
            _decode(BOX_CODER, deltas_KC4[None, :, label], boxes, image_size)[0]
            for label in range(1, labels + 1)
        ]
        corners = torch.stack(moved, dim=1)[valid].flatten(0, 1)
        scores, label_of = scores_KC[valid][:, 1:].flatten(), numbers[valid].flatten()
        good = (scores > _LOWEST_SCORE) & _is_large(corners, _SMALLEST_DETECTION)
        corners, scores, label_of = corners[good], scores[good], label_of[good]
        kept = batched_nms(corners, scores, label_of, _DETECTION_OVERLAP)[:most]
        found[image, : len(kept), :4] = corners[kept]
        found[image, : len(kept), 4] = scores[kept]
        found[image, : len(kept), 5] = label_of[kept].to(found.dtype)
    return found


def _decode(
    coder: BoxCoder, deltas_BA4: Tensor, anchors_A4: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Return anchors moved by [B, A, 4], within the image; a diverged model moves none."""
    deltas = deltas_BA4.nan_to_num(0.0, 0.0, 0.0).flatten(0, 1)
    same = anchors_A4.expand(len(deltas_BA4), -1, -1).flatten(0, 1)
    boxes: Tensor = coder.decode_single(deltas, same).squeeze(1)
    within: Tensor = clip_boxes_to_image(boxes.reshape(deltas_BA4.shape), image_size)
    return within


def _is_large(boxes: Tensor, smallest: float) -> Tensor:
    large: Tensor = ((boxes[..., 2:] - boxes[..., :2]) >= smallest).all(dim=-1)
    return large
