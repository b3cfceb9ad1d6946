"""Measures of a predicted number: mean absolute error, root of the mean squared one, R2.

A prediction is the model's output taken back to the target's unit, and clamped to its public
range. R2 is 1 minus the squared error over that of the test studies' own mean.

Legend: as in `medfusion.evaluation.measures`; W = L = 1 target.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.intervals import NORMAL_95, Interval, Resampled, resampled_weights
from medfusion.evaluation.measures import NOTHING_KNOWN, Headline, Measures
from medfusion.evaluation.metrics import FloatArray, check_logits

_SUMS = 5  # studies, |error|, error^2, target, target^2


class RegressionMeasures(Measures):
    """A release is [1, 5]: sums of 1, |e|, e^2, t and t^2 over the studies whose target is known.

    The error e is a share of the range, the target t scaled from the range to [-1, 1]; so none of
    the five exceeds 1 in size for one patient, and without noise the figures are exact.
    """

    headline: ClassVar[Headline] = Headline("mae", "MAE", lower_is_better=True)
    released: ClassVar[str] = "sums of errors"
    by_label: ClassVar[Mapping[str, str]] = {}

    def __init__(self, names: tuple[str, ...], low: float, high: float, unit: str = "") -> None:
        super().__init__(names)
        self._low, self._high = low, high
        self.unit = unit

    def predictions(self, outputs: NDArray[Any]) -> FloatArray:
        """Return the predicted targets, in their unit, of outputs of any shape."""
        check_logits(outputs)
        scaled = np.clip(outputs.astype(np.float64), -1.0, 1.0)
        found: FloatArray = self._low + (scaled + 1.0) * (self._high - self._low) / 2
        return found

    def release_shape(self, *, noised: bool) -> tuple[int, ...]:
        """Return (1, 5)."""
        return (len(self.names), _SUMS)

    @property
    def sensitivity(self) -> float:
        """The square root of 5."""
        return math.sqrt(_SUMS)

    def release(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any], *, noised: bool
    ) -> FloatArray:
        """Sum over studies; ``noised`` changes nothing, since there are five numbers only."""
        keep = known[:, 0] > 0
        # Labels were read against the range, but what bounds a release must not lean on that.
        targets = np.clip(labels[keep, 0].astype(np.float64), self._low, self._high)
        width = self._high - self._low
        error = np.abs(self.predictions(outputs)[keep, 0] - targets) / width
        scaled = 2.0 * (targets - self._low) / width - 1.0
        rows = (np.ones_like(error), error, error**2, scaled, scaled**2)
        return np.array([[row.sum() for row in rows]])

    def summary(self, total: NDArray[Any], *, noise: float = 0.0) -> dict[str, Any]:
        """Return ``mae``, ``rmse`` and ``r2``; the figures of labels are null."""
        count, absolute, squared, target, target_squared = (float(v) for v in total[0])
        nothing = {**NOTHING_KNOWN, "mae": None, "rmse": None, "r2": None}
        if count <= max(2 * noise, 0.0):
            return nothing
        width = self._high - self._low
        spread = target_squared - target**2 / count  # in halves of the range, squared
        return {
            **nothing,
            "mae": width * max(absolute, 0.0) / count,
            "rmse": width * math.sqrt(max(squared, 0.0) / count),
            "r2": 1.0 - 4.0 * max(squared, 0.0) / spread if spread > max(2 * noise, 1e-9) else None,
        }

    def mae_interval(self, total: NDArray[Any], *, noise: float = 0.0) -> Interval:
        """Return the mean absolute error with a normal interval, from the sums alone."""
        mae = self.summary(total, noise=noise)["mae"]
        if mae is None:
            return Interval(None, None)
        count, _, squared, *_ = (float(v) for v in total[0])
        share = mae / (self._high - self._low)
        variance = max(squared / count - share**2, 0.0) / count
        variance += noise**2 * (1.0 + share**2) / count**2  # delta method
        half = NORMAL_95 * math.sqrt(variance) * (self._high - self._low)
        return Interval(mae, (max(mae - half, 0.0), mae + half))

    def scores(self, outputs: NDArray[Any]) -> FloatArray | None:
        """Return None: there is no label to be told."""
        return None

    def score_counts(self, total: NDArray[Any], *, noise: float = 0.0) -> FloatArray | None:
        """Return None: there is no score of a class."""
        return None

    def held_out(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
    ) -> dict[str, Any]:
        """Return ``patients``, ``studies``, ``known`` and ``mae``, ``rmse``, ``r2``.

        The figures are ``{"mean", "ci95"}``, in the target's unit (R2 apart).
        """
        figures = self.figures(
            outputs[None, None], labels, known, patients, groups={}, resamples=1000
        )
        return {
            "patients": len(np.unique(patients)),
            "studies": len(outputs),
            "known": int((known > 0).sum()),
            "unit": self.unit,
            **{name: figure.macro(0).to_json() for name, figure in figures.items()},
        }

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
        """Return the three figures, each a mean over seeds; ``groups`` play no part in errors."""
        keep = known[:, 0] > 0
        targets = labels[keep, 0].astype(np.float64)
        errors = self.predictions(outputs)[:, :, keep, 0] - targets  # [A, S, n]
        values = np.full((3, 1 + resamples, len(outputs), 1), np.nan)
        for part, weights in resampled_weights(patients, resamples=resamples):
            weights = weights[keep]
            count = weights.sum(axis=0)
            known_at_all = np.where(count > 0, count, np.nan)
            squared = errors**2 @ weights / known_at_all  # [A, S, r]
            mean = targets @ weights / known_at_all
            spread = targets**2 @ weights / known_at_all - mean**2
            spread = np.where(spread > 1e-12 * (self._high - self._low) ** 2, spread, np.nan)
            found = (
                np.abs(errors) @ weights / known_at_all,
                np.sqrt(squared),
                1.0 - squared / spread,
            )
            for row, figure in enumerate(found):
                values[row, part, :, 0] = figure.mean(axis=1).T
        return {name: Resampled(values[i]) for i, name in enumerate(("mae", "rmse", "r2"))}
