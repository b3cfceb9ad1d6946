"""How a model's scores are read at the hospitals: probabilities, decisions, prediction sets.

All of it is fitted to the score histograms that the hospitals released of their calibration
patients, summed, so it costs no privacy beyond that release. It is kept beside the weights, in
``calibration.json``.

An operating bin is the highest one from which on the wanted share of positives is found. A
prediction set is split conformal within each class [1]_: it leaves a class out only where the score
is lower (for an absent label: higher) than that of all but a share 1 - coverage of the calibration
patients of this class. Such a set holds the true class of a new patient with the wanted chance,
whatever the class, if patients are exchangeable; a class of fewer than coverage / (1 - coverage)
patients is never left out. Cuts lie at edges of bins, always to the safe side: each is less than a
bin's width (of the logit) from that of raw scores. Under privacy the counts are noised, and a cut
leaves out one standard deviation of that noise less; the guarantee then holds up to the noise.

Legend: N studies, L labels, S bins of the logit.

References
----------
.. [1] Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", Springer 2005, section
   4.5 (label-conditional); Angelopoulos and Bates, "Conformal prediction: a gentle introduction",
   Foundations and Trends in Machine Learning 16, 2023.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medfusion.evaluation.calibrators import (
    Affine,
    Calibrator,
    Method,
    Steps,
    fewest_of_a_class,
    fit_calibrators,
)
from medfusion.evaluation.metrics import FloatArray, sigmoid
from medfusion.evaluation.score_histograms import bin_centres, bin_numbers
from medfusion.options import FileSchema, Options

DRIFT_BINS = 16


class LabelCalibration(Options):
    """What a label's scores mean.

    Attributes
    ----------
    positives, negatives
        Calibration patients with and without the label, without those beneath the noise.
    calibrator
        None: the probability stays that of the model, for want of patients or by the run's choice.
    operating_bin
        A score in this bin or a higher one is a decision for the label; None: decisions are made
        at a probability of .5, for want of positives or by the run's choice.
    present_from, absent_below
        The set holds the label from the first bin on, and its absence in bins below the second.
    score_shares
        Share of test and calibration patients in each of `DRIFT_BINS` equal bins of the logit;
        empty if nothing is known of the label.
    score_noise
        Standard deviation of the noise that privacy put on each of these shares.
    """

    positives: float = Field(ge=0)
    negatives: float = Field(ge=0)
    calibrator: Affine | Steps | None
    operating_bin: int | None = Field(ge=0)
    present_from: int = Field(ge=0)
    absent_below: int = Field(ge=0)
    score_shares: tuple[float, ...] = ()
    score_noise: float = Field(default=0.0, ge=0)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Return calibrated probabilities, of any shape."""
        return sigmoid(logits) if self.calibrator is None else self.calibrator.probabilities(logits)


class Calibration(Options):
    """The whole of ``calibration.json``.

    ``bins`` equal bins of the logit reach from -8 to 8, so that bin k begins at 16 k / bins - 8;
    what is beyond counts in the outer ones. ``exclusive``: the labels are classes of which a
    study has one. ``test``: figures on test patients; ``sites``, those of single sites, stay in
    the coordinator's run folder.
    """

    file_schema: FileSchema = 1
    method: Method
    exclusive: bool
    bins: int = Field(ge=1)
    sensitivity: float | None
    coverage: float = Field(gt=0, lt=1)
    labels: dict[str, LabelCalibration] = Field(min_length=1)
    test: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bins_exist(self) -> Self:
        for name, label in self.labels.items():
            if max(label.operating_bin or 0, label.present_from, label.absent_below) > self.bins:
                raise ValueError(f"labels.{name}: expected bins up to {self.bins}")
        return self

    def shared(self) -> dict[str, Any]:
        """Return as JSON what may leave the coordinator: all but single sites' test figures."""
        test = {key: value for key, value in self.test.items() if key != "sites"}
        return self.model_copy(update={"test": test}).model_dump(mode="json")

    def read(self, logits: NDArray[Any]) -> "Readings":
        """Return what scores [N, L] mean, each label's column in the order of ``labels``."""
        scores = logits.astype(np.float64)
        labels = list(self.labels.values())
        told = np.stack([each.probabilities(scores[:, k]) for k, each in enumerate(labels)], axis=1)
        place = bin_numbers(scores, self.bins)
        present = place >= [each.present_from for each in labels]
        if self.exclusive:
            whole = told.sum(axis=1, keepdims=True)
            told = np.divide(told, whole, out=told.copy(), where=whole > 0)
            # As in balanced accuracy, F1 and confusion: calibration does not change who is ahead.
            return Readings(told, scores == scores.max(axis=1, keepdims=True), present, ~present)
        decided = np.stack(
            [
                told[:, k] >= 0.5
                if each.operating_bin is None
                else place[:, k] >= each.operating_bin
                for k, each in enumerate(labels)
            ],
            axis=1,
        )
        absent = place < [each.absent_below for each in labels]
        return Readings(told, decided, present, absent)


@dataclass(frozen=True, eq=False, repr=False)
class Readings:
    """What scores of N studies mean.

    Attributes
    ----------
    probabilities
        [N, L]; of exclusive classes they add up to 1.
    decisions
        bool [N, L]; of exclusive classes that with the highest score.
    present, absent
        bool [N, L]: whether a prediction set holds the label, and its absence.
    """

    probabilities: FloatArray
    decisions: NDArray[np.bool_]
    present: NDArray[np.bool_]
    absent: NDArray[np.bool_]


def calibrate(
    counts: FloatArray,
    names: Sequence[str],
    *,
    method: Method,
    exclusive: bool,
    sensitivity: float | None,
    coverage: float,
    noise: float = 0.0,
) -> Calibration:
    """Fit everything to summed histograms of calibration patients.

    Parameters
    ----------
    counts
        [L, 2, S], none below 0: `Measures.score_counts` of the sum.
    exclusive
        The labels are classes of which a study has one: all are calibrated or none.
    sensitivity
        Wanted share of positives found; None: decisions are made at a probability of .5.
    coverage
        Wanted share of patients whose set holds the truth.
    noise
        Standard deviation of the noise that fell on each cell of the sum.
    """
    bins = counts.shape[-1]
    calibrators = fit_calibrators(counts, bin_centres(bins), method, noise=noise)
    if exclusive and None in calibrators:  # fitted and raw probabilities do not add up
        calibrators = [None] * len(calibrators)
    labels = {
        name: _label(each, calibrator, sensitivity, coverage, noise)
        for name, each, calibrator in zip(names, counts, calibrators, strict=True)
    }
    return Calibration(
        method=method,
        exclusive=exclusive,
        bins=bins,
        sensitivity=sensitivity,
        coverage=coverage,
        labels=labels,
    )


def _label(
    counts: FloatArray,
    calibrator: Calibrator | None,
    sensitivity: float | None,
    coverage: float,
    noise: float,
) -> LabelCalibration:
    negatives, positives = (float(value) for value in counts.sum(axis=1))
    operating = None
    if sensitivity is not None and positives >= fewest_of_a_class(counts.shape[-1], noise):
        operating = highest_start(counts[1], sensitivity * positives)
    return LabelCalibration(
        positives=positives,
        negatives=negatives,
        calibrator=calibrator,
        operating_bin=operating,
        present_from=_conformal_start(counts[1], coverage, noise),
        absent_below=len(counts[0]) - _conformal_start(counts[0][::-1], coverage, noise),
    )


def highest_start(cells: FloatArray, wanted: float) -> int:
    """Return the highest bin from which on at least ``wanted`` are counted; 0 if none is."""
    reached = np.cumsum(cells[::-1])[::-1] >= wanted - 1e-9
    return int(np.flatnonzero(reached).max(initial=0))


def _conformal_start(cells: FloatArray, coverage: float, noise: float) -> int:
    """Return the first bin that is kept of a class whose patients are counted in ``cells`` [S]."""
    total = float(cells.sum())
    may_miss = total - math.ceil((total + 1) * coverage - 1e-9)
    below = np.concatenate([[0.0], np.cumsum(cells)[:-1]])
    uncertain = below + noise * np.sqrt(np.arange(len(cells)))
    return int(np.flatnonzero(uncertain <= may_miss + 1e-9).max(initial=0))
