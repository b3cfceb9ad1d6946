"""Measures of a detector: of its boxes, and of what they say of whole studies.

Legend: as in `medfusion.evaluation.measures`, with D detections of a study, M boxes drawn on one, T
overlaps and S bins. Outputs are [..., N, D, 6] (corners in pixels, score, number of the label), the
truth is [N, L + 5 M] (`medfusion.data.labels.truth_array`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.box_matching import Drawn
from medfusion.evaluation.detection_counts import counts_shape, detection_counts, detection_json
from medfusion.evaluation.detection_metrics import FIGURES, detection_figures
from medfusion.evaluation.intervals import Resampled
from medfusion.evaluation.measures import Headline, Measures
from medfusion.evaluation.metrics import FloatArray, check_logits
from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from medfusion.evaluation.score_histograms import LIMIT


def study_logits(found: NDArray[Any], labels: int) -> FloatArray:
    """Return the logit of each label's surest detection, [..., N, L] of [..., N, D, 6].

    A study without a detection of the label gets the lowest logit that histograms tell apart.
    """
    scores = np.clip(found[..., 4].astype(np.float64), 1e-9, 1 - 1e-9)
    logits = np.clip(np.log(scores / (1 - scores)), -LIMIT, LIMIT)
    of_label = found[..., 5, None] == np.arange(1, labels + 1)  # [..., N, D, L]
    surest: FloatArray = np.where(of_label, logits[..., None], -LIMIT).max(axis=-2)
    return surest


class DetectionMeasures(Measures):
    """A release is [L, 2 S + 2 T (1 + S)]: score histograms of studies, then counts of detections.

    Under privacy it is the histograms alone, [L, 2, S] (see `detection_counts`).

    Parameters
    ----------
    image_size
        Height and width of the images that the model sees, in whose pixels outputs are.
    """

    headline: ClassVar[Headline] = Headline("ap50", "AP at IoU .5")
    released: ClassVar[str] = "score histograms and, without privacy, counts of detections"
    by_label: ClassVar[Mapping[str, str]] = {
        **MultilabelMeasures.by_label,
        **{f"{name}_by_label": name for name in FIGURES},
    }

    def __init__(self, names: tuple[str, ...], image_size: tuple[int, int]) -> None:
        super().__init__(names)
        self._studies = MultilabelMeasures(names)
        height, width = image_size
        self._sides = np.array([width, height, width, height], dtype=np.float64)

    def drawn(self, truth: NDArray[Any], known: NDArray[Any]) -> Drawn:
        """Return the boxes in ``truth``, in pixels."""
        count = len(self.names)
        most = (truth.shape[1] - count) // 5
        corners = truth[:, count : count + 4 * most].reshape(len(truth), most, 4)
        classes = truth[:, count + 4 * most :].astype(np.int64)
        return Drawn(corners * self._sides, classes, known)

    def release_shape(self, *, noised: bool) -> tuple[int, ...]:
        """Return (L, 2 S + 2 T (1 + S)), or (L, 2, S) under privacy."""
        shape = self._studies.release_shape(noised=noised)
        if noised:
            return shape
        count = len(self.names)
        return (count, int(np.prod(shape[1:]) + np.prod(counts_shape(count)[1:])))

    @property
    def sensitivity(self) -> float:
        """The square root of L: under privacy only the histograms are released."""
        return self._studies.sensitivity

    def release(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any], *, noised: bool
    ) -> FloatArray:
        """Count studies by label, class and bin of the surest score, and detections."""
        check_logits(outputs)
        count = len(self.names)
        logits = self.scores(outputs)
        histogram = self._studies.release(logits, labels[:, :count], known, noised=noised)
        if noised:
            return histogram
        counts = detection_counts(outputs, self.drawn(labels, known))
        parts = (histogram.reshape(count, -1), counts.reshape(count, -1))
        return np.concatenate(parts, axis=1)

    def summary(self, total: NDArray[Any], *, noise: float = 0.0) -> dict[str, Any]:
        """Return the figures of studies and those of boxes, which are null under privacy."""
        histogram, counts = self._parts(total)
        figures = detection_json(counts, self.names)
        return {**self._studies.summary(histogram, noise=noise), **figures}

    def scores(self, outputs: NDArray[Any]) -> FloatArray:
        """Return the logit of each label's surest detection."""
        return study_logits(outputs, len(self.names))

    def score_counts(self, total: NDArray[Any], *, noise: float = 0.0) -> FloatArray:
        """Return the histograms of studies without negative cells."""
        return self._studies.score_counts(self._parts(total)[0], noise=noise)

    def box_counts(self, total: NDArray[Any]) -> FloatArray | None:
        """Return the counts of detections in a release; None under privacy."""
        return self._parts(total)[1]

    def _parts(self, total: NDArray[Any]) -> tuple[FloatArray, FloatArray | None]:
        """Return the histograms of studies and the counts of detections."""
        if total.ndim == 3:
            return total, None
        count = len(self.names)
        shape = self._studies.release_shape(noised=False)
        split = int(np.prod(shape[1:]))
        return total[:, :split].reshape(shape), total[:, split:].reshape(counts_shape(count))

    def held_out(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
    ) -> dict[str, Any]:
        """Return what a multilabel task has, and the figures of boxes, with intervals."""
        check_logits(outputs)
        count, drawn = len(self.names), self.drawn(labels, known)
        logits = self.scores(outputs)
        result = self._studies.held_out(logits, labels[:, :count], known, patients)
        figures = detection_figures(outputs[None, None], drawn, patients, resamples=1000)
        for number, name in enumerate(self.names):
            there = (drawn.classes == number + 1) & (known[:, number, None] > 0)
            result["labels"][name]["boxes"] = int(there.sum())
            for key, figure in figures.items():
                result["labels"][name][key] = figure.label(0, number).to_json()
        return {**result, **{key: figure.macro(0).to_json() for key, figure in figures.items()}}

    def figures(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
        *,
        groups: Mapping[str, NDArray[np.intp]],
        resamples: int,
    ) -> dict[str, Resampled]:
        """Return the ranking figures of studies, and those of boxes.

        Precision of boxes is not taken within folds: scores of detections are probabilities, and
        a threshold on them is meant to hold for all.
        """
        check_logits(outputs)
        count = len(self.names)
        of_studies = self._studies.figures(
            self.scores(outputs),
            labels[:, :count],
            known,
            patients,
            groups=groups,
            resamples=resamples,
        )
        drawn = self.drawn(labels, known)
        of_boxes = detection_figures(outputs, drawn, patients, resamples=resamples)
        return {**of_studies, **of_boxes}
