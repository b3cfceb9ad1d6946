"""Counts of detections: what a site releases instead of its boxes, without privacy.

They add up over sites, and the figures of `medfusion.evaluation.detection_metrics` follow from the
sum. Under privacy they are not released: a patient moves up to D detections in each of the T
overlaps, and noise for that hides what a few hundred patients show.

Legend: N studies, D detections of a study, L labels, T overlaps, S bins of the score.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.box_matching import OVERLAPS, Drawn, match_boxes
from medfusion.evaluation.detection_metrics import FIGURES, FloatArray, figures_of_counts, means
from medfusion.evaluation.score_histograms import BINS, LIMIT

_SMALLEST = 1e-9  # of scores 0 and 1, whose logits are infinite


def counts_shape(labels: int) -> tuple[int, ...]:
    """Return the shape of the counts of L labels: [L, T, 2, 1 + S]."""
    return (labels, OVERLAPS, 2, 1 + BINS)


def detection_counts(found: NDArray[Any], drawn: Drawn) -> FloatArray:
    """Count detections by label, overlap, whether they find a box, and bin of the logit.

    Parameters
    ----------
    found
        [N, D, 6], as in `match_boxes`.

    Returns
    -------
    Array
        [L, T, 2, 1 + S]: in ``[..., 0, 1:]`` detections that find nothing, in ``[..., 1, 1:]``
        those that find a box, in ``[..., 1, 0]`` the boxes that none finds.
    """
    matches = match_boxes(found, drawn)
    counts = np.zeros(counts_shape(len(matches)))
    for label, each in enumerate(matches):
        score = np.clip(each.scores, _SMALLEST, 1 - _SMALLEST)
        share = (np.clip(np.log(score / (1 - score)), -LIMIT, LIMIT) + LIMIT) / (2 * LIMIT)
        place = 1 + np.minimum((share * BINS).astype(np.int64), BINS - 1)
        for level, hits in enumerate(each.hits):
            np.add.at(counts[label, level], (hits.astype(np.int64), place), 1.0)
            counts[label, level, 1, 0] = each.boxes.sum() - hits.sum()
    return counts


def detection_json(counts: NDArray[Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of counts, means over labels and by label; None where undefined.

    Without counts, all are.
    """
    if counts is None:
        return {**dict.fromkeys(FIGURES), "detection": dict.fromkeys(names)}
    figures = [_figures(each) for each in counts]
    by_label = {name: means([each]) for name, each in zip(names, figures, strict=True)}
    return {**means(figures), "detection": by_label}


def _figures(counts: FloatArray) -> FloatArray:
    """Return the figures [F] of one label's counts [T, 2, 1 + S]."""
    misses, hits = counts[:, 0, :0:-1], counts[:, 1, :0:-1]
    return figures_of_counts(hits, misses, float(detection_boxes(counts)))


def detection_boxes(counts: NDArray[Any]) -> NDArray[Any]:
    """Return how many boxes are drawn, found or not, [...] of counts [..., T, 2, 1 + S]."""
    boxes: NDArray[Any] = counts[..., 0, 1, :].sum(axis=-1)
    return boxes
