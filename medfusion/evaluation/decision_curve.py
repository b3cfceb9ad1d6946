"""Net benefit of acting on a model, over the thresholds at which one would act.

Vickers and Elkin (*Decision curve analysis: a novel method for evaluating prediction models*,
Medical Decision Making 26:565-574, 2006): who acts from a risk of p on weighs a needless action as
p / (1 - p) of a needed one, so that the net benefit of a study is

    true positives / n  -  false positives / n * p / (1 - p).

A model is worth using at p if it beats both acting on everybody and acting on nobody (0).

Legend: U distinct scores, T thresholds.
"""

from typing import Any

import numpy as np

from medfusion.evaluation.metrics import FloatArray

THRESHOLDS: FloatArray = np.arange(1, 20) / 20.0


def net_benefit(counts: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Return the net benefit [T] at `THRESHOLDS` of acting where the probability reaches them.

    ``counts`` [2, U] are negatives and positives at ``probabilities`` [U]; at least one in all.
    """
    reached = probabilities >= THRESHOLDS[:, None]  # [T, U]
    false, true = reached @ counts[0], reached @ counts[1]
    found: FloatArray = (true - false * THRESHOLDS / (1.0 - THRESHOLDS)) / counts.sum()
    return found


def net_benefit_of_all(counts: FloatArray) -> FloatArray:
    """Return the net benefit [T] of acting on everybody."""
    return net_benefit(counts, np.ones(counts.shape[1]))


def decision_curve_json(counts: FloatArray, probabilities: FloatArray) -> dict[str, Any] | None:
    """Return ``thresholds``, ``model`` and ``all``, lists [T]; None without a study."""
    if counts.sum() <= 0:
        return None
    return {
        "thresholds": THRESHOLDS.tolist(),
        "model": net_benefit(counts, probabilities).tolist(),
        "all": net_benefit_of_all(counts).tolist(),
    }
