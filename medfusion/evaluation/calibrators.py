"""Maps from a logit to a calibrated probability, fitted to score histograms.

============  ====================================================================================
method        map
============  ====================================================================================
temperature   sigmoid(slope z), one slope for all labels: the least log loss [1]_
platt         sigmoid(slope z + intercept) for each label: the least log loss against Platt's
              targets, (n1 + 1) / (n1 + 2) for positives and 1 / (n0 + 2) for negatives [2]_
isotonic      the nearest non-decreasing function of z for each label [3]_, straight between the
              bins in which somebody is, and no nearer to 0 and 1 than 1 / (n + 2)
============  ====================================================================================

Every study counts at the centre of its bin, so a fit from the summed histograms of sites is the
fit to their pooled scores moved by at most half a bin's width; nothing else differs.

Legend: L labels, S bins of the logit, U scores.

References
----------
.. [1] Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
.. [2] Platt, "Probabilistic outputs for support vector machines", 1999; minimised as in Lin, Lin
   and Weng, "A note on Platt's probabilistic outputs", Machine Learning 68, 2007.
.. [3] Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability
   estimates", KDD 2002.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from medfusion.evaluation.metrics import FloatArray, sigmoid
from medfusion.evaluation.score_histograms import nearest_rising
from medfusion.options import Options

Method = Literal["temperature", "platt", "isotonic", "none"]

# With fewer patients of a class a fit follows chance: over three splits of covid-chestxray, with 1
# to 8 of the rarer class, Platt's map took the calibration error from .186 to .234.
FEWEST_OF_A_CLASS = 10

# The same for noise: at 5 standard deviations of it on a class's total Platt's map took the raw
# calibration error of a private run from .065 to .113; simulated, it helps from about 6 on.
ABOVE_NOISE = 10

_STEEPEST = 20.0  # slope, or its inverse: beyond, a histogram tells no difference
_NEWTON_STEPS = 100


class Affine(Options):
    """``sigmoid(slope * logit + intercept)``."""

    slope: float = Field(ge=0)
    intercept: float

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Return probabilities of any shape."""
        return sigmoid(self.slope * logits + self.intercept)


class Steps(Options):
    """Straight lines between points; constant before the first and after the last."""

    logits: tuple[float, ...] = Field(min_length=1)
    probabilities_at: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _points_rise(self) -> "Steps":
        if len(self.logits) != len(self.probabilities_at):
            raise ValueError("expected a probability for each of the logits")
        if (np.diff(self.logits) <= 0).any() or (np.diff(self.probabilities_at) < 0).any():
            raise ValueError("expected rising points")
        return self

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Return probabilities of any shape."""
        found: FloatArray = np.interp(logits, self.logits, self.probabilities_at)
        return found


Calibrator = Affine | Steps


def fewest_of_a_class(bins: int, noise: float) -> float:
    """Return how many patients of a class it takes to fit to, counted in ``bins`` cells.

    They are `FEWEST_OF_A_CLASS`, or `ABOVE_NOISE` standard deviations of the noise on their number
    where that is more; ``noise`` is that of a cell.
    """
    return max(FEWEST_OF_A_CLASS, ABOVE_NOISE * noise * math.sqrt(bins))


def fit_calibrators(
    counts: FloatArray, logits: FloatArray, method: Method, *, noise: float = 0.0
) -> list[Calibrator | None]:
    """Return the map of each label; None where a class has too few patients to fit to.

    That is fewer than `fewest_of_a_class`. All are None where the method is ``none``.

    Parameters
    ----------
    counts
        [L, 2, S]: negatives and positives in each bin, none below 0.
    logits
        [S], rising: what the bins stand for.
    noise
        Standard deviation of the noise that fell on each cell.
    """
    fewest = fewest_of_a_class(counts.shape[-1], noise)
    usable = (counts.sum(axis=-1) >= fewest).all(axis=-1)
    if method == "none" or not usable.any():
        return [None] * len(counts)
    if method == "temperature":
        shared = Affine(slope=_slope(counts[usable].sum(axis=0), logits), intercept=0.0)
        return [shared if there else None for there in usable]
    fit: Callable[[FloatArray, FloatArray], Calibrator] = _platt if method == "platt" else _isotonic
    return [
        fit(each, logits) if there else None for each, there in zip(counts, usable, strict=True)
    ]


def _slope(counts: FloatArray, logits: FloatArray) -> float:
    """Return the slope of least log loss for counts [2, S], by bisection of its derivative."""
    low, high = 1 / _STEEPEST, _STEEPEST
    both = counts.sum(axis=0)
    for _ in range(60):
        middle = (low + high) / 2
        rising = ((both * sigmoid(middle * logits) - counts[1]) * logits).sum()
        low, high = (low, middle) if rising > 0 else (middle, high)
    return (low + high) / 2


def _platt(counts: FloatArray, logits: FloatArray) -> Affine:
    """Minimise the log loss of counts [2, S] by Newton steps; a slope below 0 becomes 0."""
    negatives, positives = counts.sum(axis=1)
    both = counts.sum(axis=0)
    wanted = counts[1] * (positives + 1) / (positives + 2) + counts[0] / (negatives + 2)
    design = np.stack([logits, np.ones_like(logits)])  # [2, S]
    at = np.array([0.0, np.log(wanted.sum() / (both - wanted).sum())])

    def loss(parameters: FloatArray) -> float:
        score = parameters @ design
        return float((both * np.logaddexp(0.0, score) - wanted * score).sum())

    for _ in range(_NEWTON_STEPS):
        told = sigmoid(at @ design)
        gradient = design @ (both * told - wanted)
        hessian = (design * (both * told * (1 - told))) @ design.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(at - size * step) > loss(at):
            size /= 2
        at = at - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    slope, intercept = (float(value) for value in at)
    if slope < 0:  # the scores rank the wrong way round: better the mean than the opposite
        return Affine(slope=0.0, intercept=float(np.log(wanted.sum() / (both - wanted).sum())))
    return Affine(slope=slope, intercept=intercept)


def _isotonic(counts: FloatArray, logits: FloatArray) -> Steps:
    both = counts.sum(axis=0)
    filled = both > 0
    fit = nearest_rising(counts[1][filled] / both[filled], both[filled])
    least = 1.0 / (both.sum() + 2.0)
    inside = np.maximum.accumulate(np.clip(fit, least, 1.0 - least))  # rounding may break a tie
    return Steps(logits=tuple(logits[filled].tolist()), probabilities_at=tuple(inside.tolist()))
