"""Sensitivity at a fixed specificity, and specificity at a fixed sensitivity.

A study is flagged at or above a score; of all such rules the best that keeps to the fixed rate is
taken, without interpolation. It is the best in these very studies, so on few of them it flatters.

Legend: N studies, L labels, U distinct scores, R resamples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.intervals import Resampled, resampled_weights, sums_by_group
from medfusion.evaluation.metrics import FloatArray

FIXED = 0.9
NAMES = ("sensitivity_at_90_specificity", "specificity_at_90_sensitivity")
_SLACK = 1e-9  # of rates that are quotients of floats


def rates(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return sensitivity and specificity, both [U + 1, ...], of flagging the k highest scores.

    ``counts`` [2, U, ...] are negatives and positives at ascending scores; k counts up from 0.
    NaN where the class is absent.
    """
    flagged = np.cumsum(counts[:, ::-1], axis=1)
    flagged = np.concatenate([np.zeros_like(counts[:, :1]), flagged], axis=1)
    total = counts.sum(axis=1, keepdims=True)
    share = np.full_like(flagged, np.nan)
    np.divide(flagged, total, out=share, where=total > 0)
    return share[1], 1.0 - share[0]


def fixed_rates(counts: FloatArray, fixed: float = FIXED) -> FloatArray:
    """Return the figures called `NAMES`, [2, ...], of counts [2, U, ...]; NaN where undefined."""
    sensitivity, specificity = rates(counts)
    defined = (counts.sum(axis=1) > 0).all(axis=0)
    best = [
        np.where(kept >= fixed - _SLACK, gained, 0.0).max(axis=0)
        for gained, kept in ((sensitivity, specificity), (specificity, sensitivity))
    ]
    return np.where(defined, np.stack(best), np.nan)


def operating_points(
    logits: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    patients: NDArray[Any],
    *,
    resamples: int = 1000,
) -> dict[str, Resampled]:
    """Return both figures of each label over resampled patients, by their names.

    Parameters
    ----------
    logits, labels, known
        [N, L]; a label counts where ``known`` is not 0.
    patients
        [N], one value for each patient: the bootstrap's unit.
    """
    count = logits.shape[1]
    values = np.full((2, 1 + resamples, 1, count), np.nan)
    for part, weights in resampled_weights(patients, resamples=resamples):
        for label in range(count):
            keep = known[:, label] > 0
            levels, level = np.unique(logits[:, label], return_inverse=True)
            classes = (keep & (labels[:, label] <= 0), keep & (labels[:, label] > 0))
            places = [np.flatnonzero(one) for one in classes]
            counts = [sums_by_group(weights, at, level[at], len(levels)) for at in places]
            values[:, part, 0, label] = fixed_rates(np.stack(counts))
    return {name: Resampled(values[i]) for i, name in enumerate(NAMES)}
