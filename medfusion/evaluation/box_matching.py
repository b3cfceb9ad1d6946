"""Which detections find something that was drawn, as COCO decides it [1]_.

In each study and label the surest detection chooses first: among the boxes that are still free and
that it overlaps enough, the one it overlaps most. At most one detection finds a box.

Overlap is IoU at .5, .55, ... .95, and IoBB, the share of the detection that lies in the box, at
.5 (used for radiographs, where any hint at the place helps [2]_; a tiny box inside scores 1, so
it stands beside IoU and never in its place).

Legend: N studies, D detections of a study, M boxes drawn on one, L labels, T overlaps, E detections
of one label in all studies.

References
----------
.. [1] Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; its evaluation code.
.. [2] Wang et al., "ChestX-ray8", CVPR 2017, section 4.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

IOU_LEVELS = tuple((50 + 5 * step) / 100 for step in range(10))
IOBB_LEVEL = 0.5
OVERLAPS = len(IOU_LEVELS) + 1  # T: the levels of IoU, then the one of IoBB
_LEVELS = np.minimum((*IOU_LEVELS, IOBB_LEVEL), 1 - 1e-10)


@dataclass(frozen=True, eq=False, repr=False)
class Drawn:
    """What was drawn on N studies.

    Attributes
    ----------
    corners, classes
        [N, M, 4], in the unit of the detections, and int64 [N, M], from 1; 0 where there is none.
    known
        [N, L]: a label counts in a study where it is not 0.
    """

    corners: NDArray[Any]
    classes: NDArray[np.int64]
    known: NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Matches:
    """The detections of one label, the surest first.

    Attributes
    ----------
    scores
        [E]
    hits
        bool [T, E]: which detections find a box.
    studies
        int64 [E]
    boxes
        int64 [N]: how many are to be found in each study.
    """

    scores: FloatArray
    hits: NDArray[np.bool_]
    studies: NDArray[np.int64]
    boxes: NDArray[np.int64]


def match_boxes(found: NDArray[Any], drawn: Drawn) -> list[Matches]:
    """Return the matches of each label.

    Parameters
    ----------
    found
        [N, D, 6]: corners, score, number of the label from 1 (0: no detection).
    """
    return [_of_label(found, drawn, label) for label in range(drawn.known.shape[1])]


def _of_label(found: NDArray[Any], drawn: Drawn, label: int) -> Matches:
    scores, hits, studies = [np.zeros(0)], [np.zeros((OVERLAPS, 0), dtype=bool)], []
    boxes = np.zeros(len(found), dtype=np.int64)
    for study in np.flatnonzero(drawn.known[:, label] > 0):
        mine = found[study][found[study, :, 5] == label + 1].astype(np.float64)
        mine = mine[np.argsort(-mine[:, 4], kind="stable")]
        theirs = drawn.corners[study][drawn.classes[study] == label + 1].astype(np.float64)
        boxes[study] = len(theirs)
        scores.append(mine[:, 4])
        hits.append(_hits(mine[:, :4], theirs))
        studies += [study] * len(mine)
    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    return Matches(
        scores=score[order],
        hits=np.concatenate(hits, axis=1)[:, order],
        studies=np.array(studies, dtype=np.int64)[order],
        boxes=boxes,
    )


def _hits(found: FloatArray, drawn: FloatArray) -> NDArray[np.bool_]:
    """Return which detections [d, 4], the surest first, find a box of [m, 4]: bool [T, d]."""
    hits = np.zeros((OVERLAPS, len(found)), dtype=bool)
    if not len(drawn):
        return hits
    iou, iobb = overlaps(found, drawn)
    free = np.ones((OVERLAPS, len(drawn)), dtype=bool)
    levels = np.arange(OVERLAPS)
    for number in range(len(found)):
        shares = np.stack([iou[number]] * len(IOU_LEVELS) + [iobb[number]])
        shares = np.where(free & (shares >= _LEVELS[:, None]), shares, -1.0)
        last = shares.shape[1] - 1 - shares[:, ::-1].argmax(axis=1)  # of equal ones, as COCO does
        hit = shares[levels, last] >= 0
        hits[:, number] = hit
        free[levels[hit], last[hit]] = False
    return hits


def overlaps(found: FloatArray, drawn: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return IoU and IoBB of boxes [d, 4] and [m, 4], each [d, m]; 0 of boxes without area."""
    near = np.maximum(found[:, None, :2], drawn[None, :, :2])
    far = np.minimum(found[:, None, 2:], drawn[None, :, 2:])
    common = np.clip(far - near, 0.0, None).prod(axis=-1)
    own, other = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (found, drawn))
    union = own[:, None] + other[None] - common
    iou = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    whole = np.broadcast_to(own[:, None], common.shape)
    return iou, np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)
