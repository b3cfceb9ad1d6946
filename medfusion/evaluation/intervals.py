"""Confidence intervals of AUROC: from counts alone, and by resampling patients.

Legend: A arms, R resamples, S seeds, N studies, L labels, P patients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.metrics import FloatArray, auroc

NORMAL_95 = 1.959963984540054
_CELLS_AT_ONCE = 4_000_000  # bounds memory: resamples are taken in chunks of this many floats


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval; both None where undefined."""

    mean: float | None
    ci95: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return ``{"mean", "ci95"}``."""
        return {"mean": self.mean, "ci95": list(self.ci95) if self.ci95 else None}


def auroc_interval(counts: FloatArray, *, noise: float = 0.0) -> Interval:
    """Return the AUROC of counts [2, U] with an interval that needs nothing but the counts.

    Method 5 of Newcombe (*Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic. Part 2*, Statistics in Medicine 25:559-573, 2006): the areas whose
    Hanley-McNeil variance does not exclude the one observed. Unlike a standard error taken at
    the estimate, it neither leaves [0, 1] nor shrinks to a point at AUROC 1. ``noise``, the
    standard deviation of the noise in each cell, adds its own variance (delta method).
    """
    area = auroc(counts)
    if area is None:
        return Interval(None, None)
    negatives, positives = (float(total) for total in counts.sum(axis=1))
    added = noise**2 * _noise_gain(counts, area)

    def excluded(candidate: float) -> bool:
        half = (negatives + positives) / 2
        spread = (1 - candidate) / (2 - candidate) + candidate / (1 + candidate)
        variance = candidate * (1 - candidate) * max(1 + (half - 1) * spread, 0.0)
        limit = NORMAL_95 * math.sqrt(variance / (negatives * positives) + added)
        return abs(candidate - area) > limit

    return Interval(area, (_boundary(0.0, area, excluded), _boundary(1.0, area, excluded)))


def _boundary(outside: float, inside: float, excluded: Callable[[float], bool]) -> float:
    """Return where the interval ends between a point outside (or at the limit) and one inside."""
    if not excluded(outside):
        return outside
    for _ in range(50):
        middle = (outside + inside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return inside


def _noise_gain(counts: FloatArray, area: float) -> float:
    """Return the AUROC's variance for unit variance in each cell of counts [2, U]."""
    negative, positive = counts
    below = (np.cumsum(negative) - negative / 2) / negative.sum()
    above = (positive.sum() - np.cumsum(positive) + positive / 2) / positive.sum()
    return float(
        (((below - area) / positive.sum()) ** 2).sum()
        + (((above - area) / negative.sum()) ** 2).sum()
    )


@dataclass(frozen=True, eq=False)
class PatientBootstrap:
    """AUROCs of several arms over the same resamples of patients.

    Attributes
    ----------
    areas
        [1 + R, A, L], averaged over seeds; the first is the cohort itself. NaN where a class
        is absent.
    """

    areas: FloatArray

    def auroc(self, arm: int, label: int) -> Interval:
        """AUROC of one label."""
        return _summarise(self.areas[:, arm, label])

    def macro(self, arm: int) -> Interval:
        """Mean AUROC over the labels."""
        return _summarise(self._macro(arm))

    def difference(self, arm: int, other: int) -> Interval:
        """Macro AUROC of ``arm`` minus that of ``other``, paired by resample."""
        return _summarise(self._macro(arm) - self._macro(other))

    def _macro(self, arm: int) -> FloatArray:
        areas = self.areas[:, arm]
        known = ~np.isnan(areas)
        total = np.where(known, areas, 0.0).sum(axis=1)
        count = known.sum(axis=1)
        undefined = np.full(len(areas), np.nan)
        mean: FloatArray = np.divide(total, count, out=undefined, where=count > 0)
        return mean


def patient_bootstrap(
    scores: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    patients: NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> PatientBootstrap:
    """Resample patients with replacement, each with all their studies.

    Parameters
    ----------
    scores
        [A, S, N, L] or [A, N, L]: predictions of each arm (and seed) for the same studies.
    labels, known
        [N, L]; a label counts where ``known`` is not 0.
    patients
        [N], one value for each patient.
    """
    arms = scores[:, None] if scores.ndim == 3 else scores
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max(initial=-1)) + 1
    areas = np.full((1 + resamples, arms.shape[0], arms.shape[3]), np.nan)
    if count == 0:
        return PatientBootstrap(areas)
    generator = np.random.default_rng(seed)
    chunk = max(1, _CELLS_AT_ONCE // len(patient))
    for start in range(0, 1 + resamples, chunk):
        size = min(chunk, 1 + resamples - start)
        drawn = generator.multinomial(size=size, n=count, pvals=np.full(count, 1 / count))
        if start == 0:
            drawn[0] = 1
        weights = drawn[:, patient].astype(np.float64)
        areas[start : start + size] = _weighted_areas(weights, arms, labels, known)
    return PatientBootstrap(areas)


def _weighted_areas(
    weights: FloatArray, arms: NDArray[Any], labels: NDArray[Any], known: NDArray[Any]
) -> FloatArray:
    """Return AUROCs [R, A, L], averaged over seeds, for study weights [R, N]."""
    areas = np.empty((len(weights), arms.shape[0], arms.shape[3]))
    for label in range(arms.shape[3]):
        keep = known[:, label] > 0
        positive = labels[keep, label] > 0
        of_label = weights[:, keep]
        for arm, runs in enumerate(arms[..., label]):
            areas[:, arm, label] = np.mean(
                [_weighted_auroc(of_label, run[keep], positive) for run in runs], axis=0
            )
    return areas


def _weighted_auroc(
    weights: FloatArray, scores: NDArray[Any], positive: NDArray[np.bool_]
) -> FloatArray:
    """Return the AUROC [R] under each row of weights [R, n]; ties count half."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    negatives = np.cumsum(weights * ~positive, axis=1)
    negatives = np.concatenate([np.zeros((len(weights), 1)), negatives], axis=1)
    # A positive beats the negatives before its group of ties, and half of those within it.
    mine = scores[positive]
    first = np.searchsorted(scores, mine, side="left")
    last = np.searchsorted(scores, mine, side="right")
    below = (negatives[:, first] + negatives[:, last]) / 2
    of_positive = weights[:, positive]
    pairs = of_positive.sum(axis=1) * negatives[:, -1]
    won = (of_positive * below).sum(axis=1)
    area: FloatArray = np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return area


def _summarise(samples: FloatArray) -> Interval:
    """Return the cohort's own figure (the first) and the percentiles of the resamples."""
    resampled = samples[1:][~np.isnan(samples[1:])]
    if np.isnan(samples[0]) or len(resampled) == 0:
        return Interval(None, None)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(samples[0]), (float(low), float(high)))
