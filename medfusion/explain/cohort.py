"""From attributions of single studies to what holds of a cohort, with intervals over patients.

Legend: N studies, L labels, F features (or columns, or tokens), R resamples, P patients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.intervals import resampled_weights

FloatArray = NDArray[np.float64]
_RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class Importance:
    """The mean absolute attribution with its 95% interval, each [L, F]."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray

    def order(self) -> NDArray[np.intp]:
        """Return the features, those that matter most over all labels first."""
        return np.argsort(-self.mean.sum(axis=0), kind="stable")


def importance(
    attributions_NLF: NDArray[Any], patients: NDArray[Any], *, min_patients: int
) -> Importance | None:
    """Return how much features matter on average; None below ``min_patients`` patients.

    Intervals are percentiles over resamples of the patients, each with all their studies.
    """
    if len(np.unique(patients)) < max(min_patients, 1):
        return None
    size = np.abs(np.asarray(attributions_NLF, dtype=np.float64))
    flat = size.reshape(len(size), -1)
    means = np.concatenate(
        [
            (weights.T @ flat) / weights.sum(axis=0)[:, None]
            for _, weights in resampled_weights(patients, resamples=_RESAMPLES)
        ]
    ).reshape(-1, *size.shape[1:])
    low, high = np.percentile(means[1:], [2.5, 97.5], axis=0)
    return Importance(means[0], low, high)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Whether features push a label's score where the label truly is.

    Attributes
    ----------
    difference
        [L, F]: the mean attribution of patients with the label minus that of those without;
        NaN where either are too few.
    low, high
        [L, F]: the interval in which 95% of such differences lie when the label is dealt to the
        same patients at random.
    """

    difference: FloatArray
    low: FloatArray
    high: FloatArray


def contrast(
    attributions_NLF: NDArray[Any],
    labels_NL: NDArray[Any],
    known_NL: NDArray[Any],
    patients: NDArray[Any],
    *,
    min_patients: int,
    permutations: int = 1000,
) -> Contrast:
    """Compare patients with a label and those without, and with labels permuted over patients.

    A patient has the mean of the attributions of their studies in which the label is known, and
    has the label if one of these has it.
    """
    values = np.asarray(attributions_NLF, dtype=np.float64)
    shape = values.shape[1:]
    found = [np.full(shape, np.nan) for _ in range(3)]
    generator = np.random.default_rng(0)
    for label in range(shape[0]):
        keep = known_NL[:, label] > 0
        _, patient = np.unique(patients[keep], return_inverse=True)
        has = np.bincount(patient, weights=labels_NL[keep, label] > 0) > 0
        if min(has.sum(), (~has).sum()) < max(min_patients, 1):
            continue
        sums = np.zeros((len(has), shape[1]))
        np.add.at(sums, patient, values[keep, label])
        of_patients = sums / np.bincount(patient)[:, None]
        dealt = [_difference(of_patients, generator.permutation(has)) for _ in range(permutations)]
        found[0][label] = _difference(of_patients, has)
        found[1][label], found[2][label] = np.percentile(dealt, [2.5, 97.5], axis=0)
    return Contrast(*found)


def _difference(of_patients_PF: FloatArray, has_P: NDArray[np.bool_]) -> FloatArray:
    difference: FloatArray = of_patients_PF[has_P].mean(axis=0) - of_patients_PF[~has_P].mean(
        axis=0
    )
    return difference


def by_feature(attributions: NDArray[Any], column_features: NDArray[np.int64]) -> FloatArray:
    """Add attributions [..., K] of columns up to those of the features they belong to, [..., F]."""
    added = np.zeros((*attributions.shape[:-1], int(column_features.max()) + 1))
    for column, feature in enumerate(column_features):
        added[..., feature] += attributions[..., column]
    return added
