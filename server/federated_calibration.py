"""The calibration of a run's model, from what its sites released of their held-out patients."""

import math
from typing import Any

from medfusion.evaluation.calibrated_figures import figures_of_histograms
from medfusion.evaluation.calibration import DRIFT_BINS, Calibration, calibrate
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.metrics import FloatArray
from server.federated_metrics import summed
from server.run_state import Histograms, RunContext


def federated_calibration(
    context: RunContext, *, calibration: Histograms, test: Histograms
) -> Calibration | None:
    """Fit to the calibration patients of all sites, measure on their test patients.

    ``calibration`` and ``test`` are releases by site. None where there is nothing to fit to: the
    task's model tells no labels, or no site released anything of calibration patients.
    """
    options, task = context.config.evaluation, context.task
    counts = _counts(context, calibration)
    if counts is None:
        return None
    _, noise = summed(calibration, context.plans, sensitivity=context.last_sensitivity)
    fitted = calibrate(
        counts,
        task.labels.names,
        method=options.calibration,
        exclusive=task.task.kind == "multiclass",
        sensitivity=options.sensitivity,
        coverage=options.coverage,
        noise=noise,
    )
    tested = _counts(context, test)
    assert tested is not None
    labels = {
        name: label.model_copy(update=_score_shares(seen, noise))
        for (name, label), seen in zip(fitted.labels.items(), counts + tested, strict=True)
    }
    figures = figures_of_histograms(fitted, tested)
    sites = {name: _coverage(context, fitted, {name: test[name]}) for name in sorted(test)}
    return fitted.model_copy(update={"labels": labels, "test": figures | {"sites": sites}})


def _counts(context: RunContext, releases: Histograms) -> FloatArray | None:
    """Return the sum of releases as histograms without negative cells."""
    if not releases:
        return None
    measures = measures_of(context.task)
    total, noise = summed(releases, context.plans, sensitivity=context.last_sensitivity)
    return measures.score_counts(total, noise=noise)


def _coverage(context: RunContext, fitted: Calibration, release: Histograms) -> dict[str, Any]:
    counts = _counts(context, release)
    assert counts is not None
    figures = figures_of_histograms(fitted, counts)
    return {
        "coverage": figures["coverage"],
        "set_size": figures["set_size"],
        "labels": {name: label["coverage"] for name, label in figures["labels"].items()},
    }


def _score_shares(counts: FloatArray, noise: float) -> dict[str, Any]:
    """Return which share of the patients in [2, S] is in each of `DRIFT_BINS` bins.

    The counts are sums of two releases with ``noise`` in each cell.
    """
    coarse = counts.sum(axis=0).reshape(DRIFT_BINS, -1).sum(axis=1)
    whole = float(coarse.sum())
    if whole <= 0:
        return {"score_shares": ()}
    spread = noise * math.sqrt(2 * counts.size / DRIFT_BINS)
    return {"score_shares": tuple((coarse / whole).tolist()), "score_noise": spread / whole}
