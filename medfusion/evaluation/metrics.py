"""Discrimination and calibration of multilabel scores.

Every figure is computed from counts over distinct scores, so raw predictions and score
histograms share one definition of each:

- AUROC: the chance that a positive scores above a negative, ties counting half.
- AUPRC: average precision, the mean precision at each positive, without interpolation.
- Brier score: mean squared error of the probability.
- ECE: expected calibration error over 10 equal bins of probability, weighted by their counts
  (Naeini et al., *Obtaining well calibrated probabilities using Bayesian binning*, AAAI 2015).

AUROC and AUPRC are None where a class is absent; Brier and ECE where no label is known.

Legend: N studies, L labels, U distinct scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.errors import FederationError

FloatArray = NDArray[np.float64]
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Metrics:
    """Figures for each label; the properties are means over the labels that have one."""

    auroc: tuple[float | None, ...]
    auprc: tuple[float | None, ...]
    brier: tuple[float | None, ...]
    ece: tuple[float | None, ...]

    @property
    def auroc_macro(self) -> float | None:
        """Mean AUROC over labels."""
        return mean_of_known(self.auroc)

    @property
    def auprc_macro(self) -> float | None:
        """Mean AUPRC over labels."""
        return mean_of_known(self.auprc)

    @property
    def brier_macro(self) -> float | None:
        """Mean Brier score over labels."""
        return mean_of_known(self.brier)

    @property
    def ece_macro(self) -> float | None:
        """Mean calibration error over labels."""
        return mean_of_known(self.ece)

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the keys that a run's ``summary.json`` holds."""
        return {
            "auroc_macro": self.auroc_macro,
            "auprc_macro": self.auprc_macro,
            "auroc": dict(zip(labels, self.auroc, strict=True)),
            "brier": self.brier_macro,
            "ece": self.ece_macro,
        }


def metrics_from_logits(logits: NDArray[Any], labels: NDArray[Any], known: NDArray[Any]) -> Metrics:
    """Return the metrics of raw predictions.

    Parameters
    ----------
    logits, labels, known
        [N, L]; a label counts where ``known`` is not 0, its value elsewhere is ignored.

    Raises
    ------
    FederationError
        If a logit is NaN: the model diverged.
    """
    check_logits(logits)
    counts, scores = counts_at_scores(logits, labels, known)
    return metrics_from_counts(counts, [sigmoid(each) for each in scores])


def counts_at_scores(
    logits: NDArray[Any], labels: NDArray[Any], known: NDArray[Any]
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Count studies [N, L] at each distinct score: for each label [2, U], and the scores [U]."""
    counts, distinct = [], []
    for column in range(logits.shape[1]):
        keep = known[:, column] > 0
        scores, position = np.unique(logits[keep, column].astype(np.float64), return_inverse=True)
        row = np.zeros((2, len(scores)))
        np.add.at(row, (labels[keep, column].astype(np.int64), position), 1.0)
        counts.append(row)
        distinct.append(scores)
    return counts, distinct


def metrics_from_counts(
    counts: Sequence[FloatArray], probabilities: Sequence[FloatArray]
) -> Metrics:
    """Return the metrics of labels given as counts.

    Parameters
    ----------
    counts
        For each label [2, U]: negatives and positives at each score, in ascending order.
    probabilities
        For each label [U]: the probabilities that the scores stand for.
    """
    pairs = list(zip(counts, probabilities, strict=True))
    return Metrics(
        auroc=tuple(auroc(count) for count in counts),
        auprc=tuple(auprc(count) for count in counts),
        brier=tuple(brier(count, probability) for count, probability in pairs),
        ece=tuple(ece(count, probability) for count, probability in pairs),
    )


def auroc(counts: FloatArray) -> float | None:
    """Return the area under the ROC curve of counts [2, U]."""
    negative, positive = counts
    pairs = negative.sum() * positive.sum()
    if pairs <= 0:
        return None
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs)


def auprc(counts: FloatArray) -> float | None:
    """Return the average precision of counts [2, U]."""
    negative, positive = counts[:, ::-1]
    if negative.sum() <= 0 or positive.sum() <= 0:
        return None
    caught = np.cumsum(positive)
    flagged = caught + np.cumsum(negative)
    precision = np.divide(caught, flagged, out=np.zeros_like(caught), where=flagged > 0)
    return float((positive * precision).sum() / positive.sum())


def brier(counts: FloatArray, probabilities: FloatArray) -> float | None:
    """Return the mean squared error of counts [2, U] at ``probabilities`` [U]."""
    total = counts.sum()
    if total <= 0:
        return None
    errors = counts[0] * probabilities**2 + counts[1] * (1 - probabilities) ** 2
    return float(errors.sum() / total)


def ece(counts: FloatArray, probabilities: FloatArray) -> float | None:
    """Return the expected calibration error of counts [2, U] at ``probabilities`` [U]."""
    size, predicted, observed = reliability(counts, probabilities)
    if size.sum() <= 0:
        return None
    filled = size > 0
    return float((size * np.abs(predicted - observed))[filled].sum() / size.sum())


def reliability(
    counts: FloatArray, probabilities: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Group counts [2, U] into 10 equal bins of probability.

    Returns
    -------
    tuple
        Three arrays [10]: studies, their mean predicted probability, their observed share of
        positives; the last two are NaN where a bin is empty.
    """
    group = np.minimum((probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    both = counts.sum(axis=0)
    size, predicted, observed = (
        np.bincount(group, weights=weights, minlength=CALIBRATION_BINS).astype(np.float64)
        for weights in (both, both * probabilities, counts[1])
    )
    empty = np.full(CALIBRATION_BINS, np.nan)
    return (
        size,
        np.divide(predicted, size, out=empty.copy(), where=size > 0),
        np.divide(observed, size, out=empty.copy(), where=size > 0),
    )


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return probabilities, without overflow for any finite logit."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def check_logits(logits: NDArray[Any]) -> None:
    """Raise `FederationError` if the model gave NaN; of how many patients, is not told."""
    if np.isnan(logits).any():
        raise FederationError(
            "the model gave NaN: it diverged; lower training.learning_rate or privacy.max_grad_norm"
        )


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
