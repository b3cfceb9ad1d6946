"""Metrics of the federation, from the sum of its sites' score histograms."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.metrics import Metrics
from medfusion.evaluation.score_histograms import metrics_from_histogram, score_sensitivity
from medfusion.privacy.plan import DpPlan


def federated_metrics(
    histograms: Mapping[str, NDArray[Any]], plans: Mapping[str, DpPlan]
) -> Metrics:
    """Return the metrics of the sites in ``histograms`` ([L, 2, S] each) together.

    ``plans`` says how much noise each site added; it is empty without privacy.
    """
    total = np.sum([histograms[name] for name in sorted(histograms)], axis=0)
    multipliers = [plans[name].metrics_noise or 0.0 for name in histograms if name in plans]
    noise = score_sensitivity(total.shape[0]) * math.hypot(*multipliers)
    return metrics_from_histogram(total, noise=noise)
