"""Metrics of the federation, from the sum of what its sites released."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.measures import Measures
from medfusion.evaluation.metrics import FloatArray
from medfusion.privacy.plan import DpPlan


def federated_metrics(
    measures: Measures, releases: Mapping[str, NDArray[Any]], plans: Mapping[str, DpPlan]
) -> dict[str, Any]:
    """Return the figures of the sites in ``releases`` together, as `Measures.summary` does.

    ``plans`` says how much noise each site added; it is empty without privacy.
    """
    total, noise = summed(measures, releases, plans)
    return measures.summary(total, noise=noise)


def summed(
    measures: Measures, releases: Mapping[str, NDArray[Any]], plans: Mapping[str, DpPlan]
) -> tuple[FloatArray, float]:
    """Return the sum of releases, and the standard deviation of the noise on each number in it."""
    total: FloatArray = np.sum([releases[name] for name in sorted(releases)], axis=0)
    multipliers = [plans[name].metrics_noise or 0.0 for name in releases if name in plans]
    return total, measures.sensitivity * math.hypot(*multipliers)
