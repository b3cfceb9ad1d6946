"""Average precision and recall of detections, as COCO defines them, with intervals.

============  ==================================================================================
figure        what
============  ==================================================================================
``ap50``      average precision at IoU .5: precision at 101 equally spaced recalls, each the best
              at that recall or a higher one
``ap``        mean of the average precisions at IoU .5, .55, ... .95
``ar``        mean of the recalls at these levels, with all the detections that a study has
``ap50_iobb`` average precision at IoBB .5
``ar50_iobb`` recall at IoBB .5
============  ==================================================================================

A label of which nothing is drawn has none; the mean over labels is that of the others.

Legend: A arms, S seeds, N studies, D detections of a study, L labels, T overlaps, F figures,
E detections of a label, R resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.box_matching import IOU_LEVELS, Drawn, Matches, match_boxes
from medfusion.evaluation.intervals import Resampled, resampled_weights

FloatArray = NDArray[np.float64]

FIGURES = ("ap50", "ap", "ar", "ap50_iobb", "ar50_iobb")
_RECALLS = np.linspace(0.0, 1.0, 101)
_LEVELS = len(IOU_LEVELS)


def detection_figures(
    found: NDArray[Any], drawn: Drawn, patients: NDArray[Any], *, resamples: int
) -> dict[str, Resampled]:
    """Return the figures of several arms, each a mean over seeds, over resampled patients.

    Parameters
    ----------
    found
        [A, S, N, D, 6]: detections of each arm and seed in the same studies, as in
        `match_boxes`.
    patients
        [N], one value for each patient, whose studies are drawn together.
    """
    arms = [[match_boxes(run, drawn) for run in runs] for runs in found]
    labels = drawn.known.shape[1]
    values = np.full((len(FIGURES), 1 + resamples, len(arms), labels), np.nan)
    for part, weights in resampled_weights(patients, resamples=resamples):
        for number, column in zip(range(part.start, part.stop), weights.T, strict=True):
            for arm, runs in enumerate(arms):
                for label in range(labels):
                    each = [_figures(run[label], column) for run in runs]
                    values[:, number, arm, label] = np.mean(each, axis=0)
    return {name: Resampled(values[i]) for i, name in enumerate(FIGURES)}


def _figures(matches: Matches, weights: FloatArray) -> FloatArray:
    """Return the figures [F] of one label, each study counting as its weight [N] says."""
    each = weights[matches.studies]
    hits = matches.hits * each
    return figures_of_counts(hits, each - hits, float((matches.boxes * weights).sum()))


def figures_of_counts(hits: FloatArray, misses: FloatArray, boxes: float) -> FloatArray:
    """Return the figures [F], NaN without a box, of detections in groups of falling scores.

    Parameters
    ----------
    hits, misses
        [T, E]: how many detections of each group find a box, and find none.
    boxes
        How many are to be found.
    """
    if boxes <= 0:
        return np.full(len(FIGURES), np.nan)
    caught = np.cumsum(hits, axis=1)
    said = caught + np.cumsum(misses, axis=1)
    recall = caught / boxes
    precision = np.divide(caught, said, out=np.zeros_like(caught), where=said > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # of recalls never reached
    areas = np.array(
        [
            row[np.searchsorted(reached, _RECALLS, side="left")].mean()
            for row, reached in zip(best, recall, strict=True)
        ]
    )
    reached = recall[:, -1] if recall.shape[1] else np.zeros(len(recall))
    return np.array(
        [areas[0], areas[:_LEVELS].mean(), reached[:_LEVELS].mean(), areas[-1], reached[-1]]
    )


def means(figures: Sequence[FloatArray]) -> dict[str, float | None]:
    """Return each figure's mean over the labels, of which each gives [F]; None without any."""
    table = np.stack(figures)
    known = ~np.isnan(table)
    return {
        name: float(table[known[:, i], i].mean()) if known[:, i].any() else None
        for i, name in enumerate(FIGURES)
    }
