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

Legend: N studies, L labels, T overlaps, F figures, E detections of a label, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.box_matching import IOU_LEVELS, Drawn, Matches, match_boxes
from medfusion.evaluation.intervals import Interval, Resampled

FloatArray = NDArray[np.float64]

FIGURES = ("ap50", "ap", "ar", "ap50_iobb", "ar50_iobb")
_RECALLS = np.linspace(0.0, 1.0, 101)
_LEVELS = len(IOU_LEVELS)


@dataclass(frozen=True, eq=False)
class DetectionBootstrap:
    """The figures over the same resamples of patients; ``boxes`` are to be found, by label."""

    figures: dict[str, Resampled]
    boxes: tuple[int, ...]

    def macro(self) -> dict[str, Interval]:
        """Return each figure's mean over the labels."""
        return {name: figure.macro(0) for name, figure in self.figures.items()}

    def label(self, number: int) -> dict[str, Interval]:
        """Return each figure of one label."""
        return {name: figure.label(0, number) for name, figure in self.figures.items()}


def detection_bootstrap(
    found: NDArray[Any],
    drawn: Drawn,
    patients: NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> DetectionBootstrap:
    """Resample patients with replacement, each with all their studies.

    Parameters
    ----------
    found
        [N, D, 6], as in `match_boxes`.
    patients
        [N], one value for each patient.
    """
    matches = match_boxes(found, drawn)
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max(initial=-1)) + 1
    values = np.full((len(FIGURES), 1 + resamples, 1, len(matches)), np.nan)
    if count:
        generator = np.random.default_rng(seed)
        drawn_often = generator.multinomial(count, np.full(count, 1 / count), size=1 + resamples)
        drawn_often[0] = 1
        for number, row in enumerate(drawn_often):
            weights = row[patient].astype(np.float64)
            for label, each in enumerate(matches):
                values[:, number, 0, label] = _figures(each, weights)
    return DetectionBootstrap(
        figures={name: Resampled(values[i]) for i, name in enumerate(FIGURES)},
        boxes=tuple(int(each.boxes.sum()) for each in matches),
    )


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
