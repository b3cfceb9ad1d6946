"""Score histograms: what a site releases instead of its predictions.

A histogram counts, for each label and class, one study of each patient in equal bins of the
logit over a public range. Histograms of sites add up; metrics come from the sum. One patient
is in at most one cell for each label, so the L2 sensitivity to a patient is sqrt(L).

Legend: N studies, L labels, S bins.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.metrics import (
    FloatArray,
    Metrics,
    check_logits,
    metrics_from_counts,
    sigmoid,
)

LIMIT = 8.0  # logits beyond are counted in the outer bins: probabilities .0003 and .9997
BINS = 256
NOISED_BINS = 32  # noise falls on every cell, so fewer cells mean less of it


def score_histogram(
    logits: NDArray[Any], labels: NDArray[Any], known: NDArray[Any], *, bins: int = BINS
) -> FloatArray:
    """Count studies by label, class and bin of the logit.

    Parameters
    ----------
    logits, labels, known
        [N, L]; **one study of each patient**. A label counts where ``known`` is not 0.

    Returns
    -------
    Array
        Counts [L, 2, S].

    Raises
    ------
    FederationError
        If a logit is NaN: the model diverged.
    """
    check_logits(logits)
    count = logits.shape[1]
    cells = (2 * np.arange(count) + (labels > 0)) * bins + bin_numbers(logits, bins)
    counts = np.bincount(cells[known > 0], minlength=count * 2 * bins)
    return counts.reshape(count, 2, bins).astype(np.float64)


def bin_numbers(logits: NDArray[Any], bins: int) -> NDArray[np.int64]:
    """Return the bin of each logit, of any shape."""
    share = (np.clip(logits.astype(np.float64), -LIMIT, LIMIT) + LIMIT) / (2 * LIMIT)
    return np.minimum((share * bins).astype(np.int64), bins - 1)


def score_sensitivity(labels: int) -> float:
    """Return the L2 sensitivity of `score_histogram` to one patient."""
    return math.sqrt(labels)


def bin_centres(bins: int) -> FloatArray:
    """Return the logits at the centres of the bins [S]."""
    return LIMIT * ((2 * np.arange(bins) + 1) / bins - 1)


def metrics_from_histogram(histogram: NDArray[Any], *, noise: float = 0.0) -> Metrics:
    """Return the metrics of a histogram [L, 2, S], each study at its bin's centre.

    ``noise`` is the (public) standard deviation of the noise in each cell; see `consistent`.
    """
    probabilities = sigmoid(bin_centres(histogram.shape[-1]))
    counts = consistent(histogram, noise=noise)
    return metrics_from_counts(list(counts), [probabilities] * len(counts))


def consistent(histogram: NDArray[Any], *, noise: float = 0.0) -> FloatArray:
    """Return a histogram without negative cells, near the noised one.

    Cutting noised cells off at zero would add studies that do not exist, and pull every AUROC
    towards one half. Instead the cumulative counts of each (label, class), whose errors cancel,
    are replaced by the nearest non-decreasing sequence with the same total. A class whose
    total is not above two standard deviations of its own noise counts as absent. A histogram
    without negative cells keeps them as they are.
    """
    cells = histogram.astype(np.float64)
    total = cells.sum(axis=-1, keepdims=True)
    if (cells < 0).any():
        rising = np.clip(nearest_rising(np.cumsum(cells, axis=-1)[..., :-1]), 0.0, total)
        risen = np.diff(np.concatenate([np.zeros_like(total), rising, total], axis=-1))
        cells = np.where((cells < 0).any(axis=-1, keepdims=True), risen, cells)
    detectable = total > 2 * noise * math.sqrt(histogram.shape[-1])
    return np.where(detectable, cells, 0.0)


def nearest_rising(values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the (weighted) least-squares non-decreasing fit along the last axis.

    By the max-min formula (Robertson, Wright and Dykstra, *Order restricted statistical
    inference*, Wiley 1988, theorem 1.4.4): at k, the largest over i <= k of the smallest over
    j >= k of the mean of values i..j. ``weights``, above 0, are 1 where they are not given.
    """
    weights = np.ones_like(values) if weights is None else weights
    size = values.shape[-1]
    sums, mass = (
        np.concatenate([np.zeros_like(part[..., :1]), np.cumsum(part, axis=-1)], axis=-1)
        for part in (values * weights, weights)
    )
    between = mass[..., None, 1:] - mass[..., :-1, None]
    ordered = np.arange(size) >= np.arange(size)[:, None]  # j >= i
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / np.where(ordered, between, 1.0)
    smallest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
    fit: FloatArray = np.maximum.accumulate(smallest, axis=-2).diagonal(axis1=-2, axis2=-1)
    return fit
