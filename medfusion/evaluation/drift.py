"""Whether a site's studies look like those that a model was trained and calibrated on.

Legend: N studies, L labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.calibration import DRIFT_BINS, LabelCalibration
from medfusion.evaluation.metrics import FloatArray
from medfusion.evaluation.score_histograms import bin_numbers

FEWEST_STUDIES = 50  # with fewer, chance alone moves the histogram as far
LARGEST_SHIFT = 0.1  # of the total variation, beyond what chance makes of so many studies
MOSTLY = 0.5  # a modality that more studies lack is as good as not there


def score_drift(logits: NDArray[Any], labels: Mapping[str, LabelCalibration]) -> list[str]:
    """Say of which labels the scores [N, L] are spread unlike the federation's.

    Compared are shares of studies in `DRIFT_BINS` bins of the logit, by their total variation: half
    the sum of the absolute differences. A share strays by sqrt(2 / pi) of its standard deviation
    on average, from drawing N studies and from the federation's noise, which is allowed for. Too
    few studies tell nothing.
    """
    if len(logits) < FEWEST_STUDIES:
        return []
    found = []
    for (name, label), scores in zip(labels.items(), logits.T, strict=True):
        if not label.score_shares:
            continue
        expected = np.array(label.score_shares)
        variation = 0.5 * float(np.abs(_shares(scores) - expected).sum())
        chance = _chance(expected, len(scores), label.score_noise)
        if variation > chance + LARGEST_SHIFT:
            found.append(
                f"label {name!r}: the scores of these studies are spread unlike those of the "
                f"hospitals that the model comes from (total variation {variation:.2f}, by chance "
                f"{chance:.2f}): its calibration may not hold here"
            )
    return found


def missing_modality_drift(missing: Sequence[str], modalities: Sequence[str]) -> list[str]:
    """Say which modalities of the model most of N studies lack.

    ``missing`` [N] is what `medfusion.prediction_table.missing_modalities` returns.
    """
    counts = {name: sum(name in each.split("+") for each in missing) for name in modalities}
    return [
        f"{name} is missing in {count} of {len(missing)} studies, and the model was trained with it"
        for name, count in counts.items()
        if count > MOSTLY * len(missing)
    ]


def _shares(scores: NDArray[Any]) -> FloatArray:
    counts = np.bincount(bin_numbers(scores, DRIFT_BINS), minlength=DRIFT_BINS)
    return counts / len(scores)


def _chance(shares: FloatArray, studies: int, noise: float) -> float:
    variances = shares * (1 - shares) / studies + noise**2
    return 0.5 * float(np.sqrt(2 / math.pi * variances).sum())
