"""The calibration of a run's model, from what its sites released of their held-out patients."""

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
    _, noise = summed(measures_of(task), calibration, context.plans)
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
        name: label.model_copy(update={"score_shares": _shares(seen)})
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
    total, noise = summed(measures, releases, context.plans)
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


def _shares(counts: FloatArray) -> tuple[float, ...]:
    """Return which share of the patients in [2, S] is in each of `DRIFT_BINS` bins."""
    coarse = counts.sum(axis=0).reshape(DRIFT_BINS, -1).sum(axis=1)
    whole = coarse.sum()
    return tuple((coarse / whole).tolist()) if whole > 0 else ()
