"""The report's tables of how good the model is, over all hospitals, for each kind of task."""

from collections.abc import Sequence

import numpy as np

from medfusion.evaluation.detection_counts import detection_boxes
from medfusion.evaluation.detection_measures import DetectionMeasures
from medfusion.evaluation.intervals import Interval, auroc_interval
from medfusion.evaluation.metrics import FloatArray, metrics_from_counts, sigmoid
from medfusion.evaluation.operating_points import fixed_rates
from medfusion.evaluation.regression_measures import RegressionMeasures
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.table import Table, area_scale, table
from medfusion.evaluation.report.wording import DASH, interval, number, score
from medfusion.evaluation.score_histograms import bin_centres


def unit_of(run: Run) -> str:
    """Return the unit of a predicted number after a space; empty where there is none."""
    unit = run.measures.unit if isinstance(run.measures, RegressionMeasures) else ""
    return f" {unit}" if unit else ""


def mean_interval(figures: Sequence[Interval]) -> Interval:
    """Return the mean of figures with an interval that is, if anything, too wide.

    The standard deviation of a mean is at most the mean of the standard deviations, which it
    reaches where all err together; labels share patients, and how much is not released.
    """
    known = [(figure.mean, figure.ci95) for figure in figures if figure.mean is not None]
    ends = [ci95 for _, ci95 in known if ci95 is not None]
    if not known or len(ends) < len(known):
        return Interval(None, None)
    low, high = (float(np.mean([end[side] for end in ends])) for side in (0, 1))
    return Interval(float(np.mean([mean for mean, _ in known])), (low, high))


def headline_of(run: Run, release: FloatArray, noise: float) -> Interval:
    """Return the headline figure of a release, with an interval where counts give one."""
    measures = run.measures
    if isinstance(measures, RegressionMeasures):
        return measures.mae_interval(release, noise=noise)
    if run.headline.key != "auroc_macro":
        return Interval(measures.summary(release, noise=noise)[run.headline.key], None)
    counts = measures.score_counts(release, noise=noise)
    assert counts is not None
    return mean_interval([auroc_interval(each, noise=noise) for each in counts])


def headline_interval(run: Run) -> str:
    """Say how sure the headline figure is; empty where that is not known."""
    if run.total is None:
        return ""
    figure = headline_of(run, run.total, run.noise)
    if figure.ci95 is None:
        return ""
    ends = [number(end) for end in figure.ci95] if unit_of(run) else [interval(figure.ci95)]
    return f"95% interval {' to '.join(ends)}"


def label_table(run: Run) -> Table | None:
    """Return the figures by label with AUROC's intervals; None where no label has both classes."""
    if run.counts is None or not (run.counts.sum(axis=-1) > 0).all(axis=-1).any():
        return None
    probabilities = sigmoid(bin_centres(run.counts.shape[-1]))
    metrics = metrics_from_counts(list(run.counts), [probabilities] * len(run.labels))
    areas = [auroc_interval(counts, noise=run.noise) for counts in run.counts]
    scale = area_scale(areas)
    rows = []
    for row, (label, area) in enumerate(zip(run.labels, areas, strict=True)):
        negatives, positives = run.counts[row].sum(axis=1).round()
        rate = float(fixed_rates(run.counts[row])[0])
        rows.append(
            (
                label,
                score(area.mean),
                interval(area.ci95),
                scale.bar(area),
                number(positives),
                number(negatives),
                score(metrics.auprc[row]),
                score(None if np.isnan(rate) else rate),
                score(metrics.brier[row]),
                score(metrics.ece[row]),
            )
        )
    ranking = ("AUROC", "95% interval", f"{scale}", "Positive", "Negative", "AUPRC")
    head = ("Label", *ranking, "Sensitivity at 90% specificity", "Brier", "ECE")
    return table("Quality by label", head, rows, words=1)


def target_table(run: Run) -> Table | None:
    """Return the errors of a regression; None for another kind of task."""
    if run.total is None or not isinstance(run.measures, RegressionMeasures):
        return None
    summary = run.measures.summary(run.total, noise=run.noise)
    mae = run.measures.mae_interval(run.total, noise=run.noise)
    ends = DASH if mae.ci95 is None else " to ".join(number(end) for end in mae.ci95)
    row = (
        run.labels[0],
        run.measures.unit or DASH,
        number(round(max(float(run.total[0, 0]), 0.0))),
        number(summary["mae"]),
        ends,
        number(summary["rmse"]),
        score(summary["r2"]),
    )
    head = ("Target", "Unit", "Studies", "MAE", "95% interval", "RMSE", "R2")
    return table("Errors", head, [row], words=2)


def confusion_table(run: Run) -> Table | None:
    """Return true against most probable classes; None unless the task is of classes."""
    if "confusion" not in run.summary:
        return None
    figures = run.summary
    rows = [
        (name, *(number(round(count)) for count in counts), score(recall), score(f1))
        for name, counts, recall, f1 in zip(
            run.labels,
            figures["confusion"],
            figures["recall"].values(),
            figures["f1"].values(),
            strict=True,
        )
    ]
    head = ("True class", *(f"told {name}" for name in run.labels), "Recall", "F1")
    return table("True and most probable class", head, rows, words=1)


def subgroup_table(run: Run) -> Table | None:
    """Return the headline figure of each subgroup; None where the run measured none.

    Rows of a feature end with its gap: the highest minus the lowest figure of its groups.
    """
    rows: list[tuple[str, ...]] = []
    key = run.headline.key  # not always the figure whose gap summary.json has
    for feature, found in (run.summary.get("subgroups") or {}).items():
        for group, figures in found["groups"].items():
            patients = number(round(max(figures["patients"], 0.0)))
            rows.append((feature, group, patients, _headline_text(run, figures[key])))
        told = [each[key] for each in found["groups"].values() if each[key] is not None]
        gap = max(told) - min(told) if len(told) > 1 else None
        rows.append((feature, "gap", "", _headline_text(run, gap)))
    if not rows:
        return None
    return table("Subgroups", ("Feature", "Group", "Patients", run.headline.name), rows, words=2)


def _headline_text(run: Run, value: float | None) -> str:
    return number(value) if unit_of(run) else score(value)


_OF_BOXES = {
    "ap50": "AP at IoU .5",
    "ap": "AP at IoU .5 to .95",
    "ar": "AR",
    "ap50_iobb": "AP at IoBB .5",
    "ar50_iobb": "AR at IoBB .5",
}


def boxes_table(run: Run) -> Table | None:
    """Return the figures of boxes by label; None unless the task has boxes that were measured."""
    if not isinstance(run.measures, DetectionMeasures) or run.summary["ap50"] is None:
        return None
    drawn = dict.fromkeys(run.labels, DASH)
    if run.total is not None and (counts := run.measures.box_counts(run.total)) is not None:
        drawn = {
            label: number(count)
            for label, count in zip(run.labels, detection_boxes(counts), strict=True)
        }
    figures = run.summary["detection"]
    rows = [
        (label, drawn[label], *(score(figures[label][key]) for key in _OF_BOXES))
        for label in run.labels
    ]
    rows.append(("mean", "", *(score(run.summary[key]) for key in _OF_BOXES)))
    return table("Boxes", ("Label", "Boxes drawn", *_OF_BOXES.values()), rows, words=1)
