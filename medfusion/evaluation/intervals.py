"""Confidence intervals: of AUROC from counts alone; of AUROC and AUPRC by resampling patients.

Legend: A arms, R resamples, S seeds, N studies, L labels, P patients, G groups, K score levels.
"""

import math
from collections.abc import Callable, Iterator
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
class Resampled:
    """One figure of several arms over the same resamples of patients.

    Attributes
    ----------
    values
        [1 + R, A, L], averaged over seeds; the first is the cohort itself. NaN where no group
        of studies has both classes.
    """

    values: FloatArray

    def label(self, arm: int, label: int) -> Interval:
        """Figure of one label."""
        return _summarise(self.values[:, arm, label])

    def macro(self, arm: int) -> Interval:
        """Mean over the labels."""
        return _summarise(self._macro(arm))

    def itself(self, arm: int) -> float | None:
        """Mean over the labels for the cohort itself, without an interval; None if undefined."""
        value = float(self._macro(arm)[0])
        return None if math.isnan(value) else value

    def difference(self, arm: int, other: int) -> Interval:
        """Mean over the labels of ``arm`` minus that of ``other``, paired by resample."""
        return _summarise(self._macro(arm) - self._macro(other))

    def _macro(self, arm: int) -> FloatArray:
        values = self.values[:, arm]
        known = ~np.isnan(values)
        total = np.where(known, values, 0.0).sum(axis=1)
        count = known.sum(axis=1)
        undefined = np.full(len(values), np.nan)
        mean: FloatArray = np.divide(total, count, out=undefined, where=count > 0)
        return mean


@dataclass(frozen=True, eq=False)
class PatientBootstrap:
    """AUROC, and AUPRC (average precision), over the same resamples."""

    auroc: Resampled
    auprc: Resampled


def patient_bootstrap(
    scores: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    patients: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> PatientBootstrap:
    """Resample patients with replacement, each with all their studies.

    Scores of different models say nothing about which of two studies is the likelier positive.
    With ``groups``, only studies of one group are ranked against each other: the AUROC is the
    share of pairs won among all pairs within a group (for cross-validation: Parker et al.,
    *Stratification bias in low signal microarray studies*, BMC Bioinformatics 8:326, 2007;
    Airola et al., *An experimental comparison of cross-validation techniques for estimating the
    area under the ROC curve*, Computational Statistics & Data Analysis 55:1828-1844, 2011); the
    AUPRC is the groups' average precision, weighted by their positives. A group counts in the
    resamples in which it has both classes.

    Parameters
    ----------
    scores
        [A, S, N, L] or [A, N, L]: predictions of each arm (and seed) for the same studies.
    labels, known
        [N, L]; a label counts where ``known`` is not 0.
    patients
        [N], one value for each patient.
    groups
        [N], one value for each group; None: all studies are one.
    """
    arms = scores[:, None] if scores.ndim == 3 else scores
    group = np.zeros(len(patients), np.intp)
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
    values = np.full((2, 1 + resamples, arms.shape[0], arms.shape[3]), np.nan)
    for part, weights in resampled_weights(patients, resamples=resamples, seed=seed):
        values[:, part] = _weighted_figures(weights, arms, labels, known, group)
    return PatientBootstrap(auroc=Resampled(values[0]), auprc=Resampled(values[1]))


def resampled_weights(
    patients: NDArray[Any], *, resamples: int, seed: int = 0
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield how often each study counts, [N, r], for some of the resamples at a time.

    Slices cover 1 + R columns; the first is the cohort itself, each study once. Equal arguments
    give equal weights, so that figures computed apart are paired. ``patients`` is [N], one value
    for each patient, whose studies are drawn together; without any, nothing is yielded.
    """
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max(initial=-1)) + 1
    generator = np.random.default_rng(seed)
    chunk = max(1, _CELLS_AT_ONCE // max(len(patient), 1))
    for start in range(0, 1 + resamples if count else 0, chunk):
        size = min(chunk, 1 + resamples - start)
        drawn = generator.multinomial(size=size, n=count, pvals=np.full(count, 1 / count))
        if start == 0:
            drawn[0] = 1
        yield slice(start, start + size), drawn.T[patient].astype(np.float64, order="C")


def _weighted_figures(
    weights: FloatArray,
    arms: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    group: NDArray[np.intp],
) -> FloatArray:
    """Return AUROC and AUPRC [2, R, A, L], averaged over seeds, for study weights [N, R]."""
    figures = np.empty((2, weights.shape[1], arms.shape[0], arms.shape[3]))
    for label in range(arms.shape[3]):
        keep = known[:, label] > 0
        positive = labels[:, label] > 0
        of_label = _Label(
            weights, group, np.flatnonzero(keep & ~positive), np.flatnonzero(keep & positive)
        )
        for arm, runs in enumerate(arms[..., label]):
            figures[:, :, arm, label] = np.mean([of_label.ranking(run) for run in runs], axis=0)
    return figures


class _Label:
    """The studies of one label: what all arms and seeds share.

    Parameters
    ----------
    weights
        [N, R]
    group
        [N], from 0.
    negatives, positives
        Positions of the studies of each class.
    """

    def __init__(
        self,
        weights: FloatArray,
        group: NDArray[np.intp],
        negatives: NDArray[np.intp],
        positives: NDArray[np.intp],
    ) -> None:
        self._weights, self._group = weights, group
        self._negatives, self._positives = negatives, positives
        count = int(group.max(initial=0)) + 1
        self._against = sums_by_group(weights, negatives, group[negatives], count)  # [G, R]
        self._found = sums_by_group(weights, positives, group[positives], count)
        self._mixed = self._against > 0
        self._pairs = (self._found * self._against).sum(axis=0)
        self._counted = (self._found * self._mixed).sum(axis=0)

    def ranking(self, scores: NDArray[Any]) -> FloatArray:
        """Return AUROC and AUPRC [2, R] of scores [N].

        Studies of one group and equal score are one level: in the AUROC ties count half; in the
        AUPRC all are flagged at once.
        """
        values, place = np.unique(scores, return_inverse=True)
        place = self._group * len(values) + place  # group by group, by score within each
        levels, level = np.unique(place[self._positives], return_inverse=True)
        home = levels // max(len(values), 1)
        hits = sums_by_group(self._weights, self._positives, level, len(levels))
        below, not_above = self._negatives_of(levels, home, place[self._negatives])
        figures = np.full((2, self._weights.shape[1]), np.nan)
        won = (hits * (below + not_above)).sum(axis=0) / 2
        np.divide(won, self._pairs, out=figures[0], where=self._pairs > 0)
        upto_group = np.cumsum(self._found, axis=0)
        caught = upto_group[home] - np.cumsum(hits, axis=0) + hits
        flagged = caught + self._against[home] - below
        precision = np.divide(caught, flagged, out=np.zeros_like(caught), where=flagged > 0)
        gained = (hits * self._mixed[home] * precision).sum(axis=0)
        np.divide(gained, self._counted, out=figures[1], where=self._pairs > 0)
        return figures

    def _negatives_of(
        self, levels: NDArray[np.intp], home: NDArray[np.intp], place: NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray]:
        """Return the group's negatives below each level, and not above it, both [K, R]."""
        # Slot 2k+1 holds the negatives at levels[k]; even slots those between two levels.
        slot = np.searchsorted(levels, place, "left") + np.searchsorted(levels, place, "right")
        upto = np.cumsum(
            sums_by_group(self._weights, self._negatives, slot, 2 * len(levels) + 1), axis=0
        )
        of_groups_before = (np.cumsum(self._against, axis=0) - self._against)[home]
        return upto[:-1:2] - of_groups_before, upto[1::2] - of_groups_before


def sums_by_group(
    weights: FloatArray, studies: NDArray[np.intp], group: NDArray[Any], count: int
) -> FloatArray:
    """Return the summed weights [count, R] of the studies in each group; empty groups have 0.

    Parameters
    ----------
    weights
        [N, R]
    studies, group
        Positions of some of the studies, and the group of each, from 0.
    """
    order = np.argsort(group, kind="stable")
    filled, first = np.unique(group[order], return_index=True)
    sums = np.zeros((count, weights.shape[1]))
    if len(filled):
        sums[filled] = np.add.reduceat(weights[studies[order]], first, axis=0)
    return sums


def _summarise(samples: FloatArray) -> Interval:
    """Return the cohort's own figure (the first) and the percentiles of the resamples."""
    resampled = samples[1:][~np.isnan(samples[1:])]
    if np.isnan(samples[0]) or len(resampled) == 0:
        return Interval(None, None)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(samples[0]), (float(low), float(high)))
