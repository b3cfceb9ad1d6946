"""The report's words and tables, as text ready to be escaped by the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medfusion.data.task import NumericFeature, Task
from medfusion.data.thresholds import Threshold
from medfusion.evaluation.intervals import auroc_interval
from medfusion.evaluation.metrics import metrics_from_counts, sigmoid
from medfusion.evaluation.regression_measures import RegressionMeasures
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.wording import (
    DASH,
    counted,
    data_size,
    duration,
    epsilon,
    interval,
    listed,
    number,
    score,
)
from medfusion.evaluation.score_histograms import bin_centres


@dataclass(frozen=True)
class Table:
    """A table of texts; ``numeric`` columns are set flush right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, words: int) -> Table:
    return Table(head, tuple(rows), frozenset(range(words, len(head))))


def key_figures(run: Run) -> list[tuple[str, str]]:
    """Return (name, figure) pairs for the head of the page."""
    summary = run.summary
    spent = [site["epsilon"] for site in summary["sites"].values() if site["epsilon"] is not None]
    simulated = ", simulated" if spent and run.privacy.get("simulated") else ""
    return [
        *_quality(run),
        (f"Largest epsilon{simulated}", epsilon(max(spent)) if spent else DASH),
        ("Rounds", number(summary["rounds"])),
        ("Time", duration(summary["seconds"])),
        ("Traffic", data_size(summary["bytes_up"] + summary["bytes_down"])),
    ]


def _quality(run: Run) -> list[tuple[str, str]]:
    summary = run.summary
    if isinstance(run.measures, RegressionMeasures):
        unit = f" {run.measures.unit}" if run.measures.unit else ""
        errors = [(name, summary[name.lower()]) for name in ("MAE", "RMSE")]
        shown = [(name, DASH if e is None else f"{number(e)}{unit}") for name, e in errors]
        return [*shown, ("R2", score(summary["r2"]))]
    boxes = [("AP at IoU .5", "ap50"), ("AP at IoU .5 to .95", "ap"), ("AR", "ar")]
    boxes += [("AP at IoBB .5", "ap50_iobb"), ("AR at IoBB .5", "ar50_iobb")]
    told = [("Balanced accuracy", "balanced_accuracy"), ("Macro F1", "f1_macro")]
    return [
        ("Macro AUROC", score(summary["auroc_macro"])),
        ("Macro AUPRC", score(summary["auprc_macro"])),
        *((name, score(summary[key])) for name, key in told if key in summary),
        *((name, score(summary[key])) for name, key in boxes if key in summary),
        ("Brier score", score(summary["brier"])),
        ("Calibration error", score(summary["ece"])),
    ]


def in_words(run: Run) -> list[str]:
    """Return the sentences that open the report."""
    return [
        _who_trained(run),
        *_averaged(run),
        _how_well(run),
        *_privacy_in_words(run),
        *_failures(run),
    ]


def _who_trained(run: Run) -> str:
    sites = run.summary["sites"]
    patients = sum(site["patients"] for site in sites.values())
    model = run.card.get("model") or {}
    what = f"the model {model['name']}" if "name" in model else "one model"
    if model.get("modalities"):
        what += f" on {listed(model['modalities'])}"
    return (
        f"{counted(len(sites), 'hospital')} with {counted(patients, 'patient')} trained {what} "
        f"together in {counted(run.summary['rounds'], 'round')} "
        f"({duration(run.summary['seconds'])}), without pooling their data."
    )


def _averaged(run: Run) -> list[str]:
    ema = run.summary.get("ema", 0.0)
    if not ema:
        return []
    return [
        "The model that is evaluated and delivered is a running average of the models of all "
        f"rounds, in which each round counts {ema:g} times as much as the one after it."
    ]


def _how_well(run: Run) -> str:
    if isinstance(run.measures, RegressionMeasures):
        return _how_near(run, run.measures)
    known = {label: area for label, area in run.summary["auroc"].items() if area is not None}
    if not known:
        return "No label has both positive and negative test patients, so no AUROC is defined."
    macro = run.summary["auroc_macro"]
    text = (
        f"On test patients it ranks a patient with the label above one without it "
        f"{100 * macro:.0f} times in 100 (macro AUROC {macro:.3f}; 0.5 is chance, 1 perfect)"
    )
    if len(known) > 1:
        worst, best = min(known, key=lambda name: known[name]), max(known, key=known.__getitem__)
        text += f", from {known[worst]:.3f} for {worst} to {known[best]:.3f} for {best}"
    absent = [label for label in run.summary["auroc"] if label not in known]
    text += f". No AUROC is defined for {listed(absent)}" if absent else ""
    return text + "."


def _how_near(run: Run, measures: RegressionMeasures) -> str:
    summary, (name,) = run.summary, run.labels
    if summary["mae"] is None:
        return f"{name} is known of too few test patients for a figure."
    unit = f" {measures.unit}" if measures.unit else ""
    text = (
        f"On test patients its prediction of {name} is {number(summary['mae'])}{unit} off on "
        "average (mean absolute error)"
    )
    if summary["r2"] is not None:
        text += f"; R2 {summary['r2']:.3f} (0: no better than the test patients' mean; 1: perfect)"
    return text + "."


def _privacy_in_words(run: Run) -> list[str]:
    sites = run.summary["sites"]
    spent = {name: site["epsilon"] for name, site in sites.items() if site["epsilon"] is not None}
    if not spent:
        return ["It was trained without differential privacy: no epsilon bounds what it reveals."]
    name = max(sorted(spent), key=lambda site: spent[site])
    text = (
        f"The largest privacy cost is epsilon {spent[name]:.2f} at {name} "
        f"(delta {number(sites[name]['delta'])})"
    )
    if run.privacy.get("simulated"):
        text += ", simulated: in a deployment each hospital would charge it to its own budget"
    if run.card.get("initial_weights"):
        text += ". It does not cover what the initial weights were trained on"
    return [text + "."]


def _failures(run: Run) -> list[str]:
    statuses = [site["status"] for line in run.rounds for site in line["sites"].values()]
    found = []
    if failed := statuses.count("failed"):
        found.append(f"{failed} of {len(statuses)} answers of hospitals failed.")
    if waiting := statuses.count("waiting"):
        found.append(f"{waiting} of {len(statuses)} times a hospital had not approved the run yet.")
    return found


def label_table(run: Run) -> tuple[Table, list[str]]:
    """Return the figures by label, and for each label its AUROC with the interval."""
    assert run.counts is not None
    probabilities = sigmoid(bin_centres(run.counts.shape[-1]))
    metrics = metrics_from_counts(list(run.counts), [probabilities] * len(run.labels))
    rows, legends = [], []
    for row, label in enumerate(run.labels):
        negatives, positives = run.counts[row].sum(axis=1).round()
        area = auroc_interval(run.counts[row], noise=run.noise)
        legends.append(f"{score(area.mean)} ({interval(area.ci95)})")
        rows.append(
            (
                label,
                number(positives),
                number(negatives),
                score(area.mean),
                interval(area.ci95),
                score(metrics.auprc[row]),
                score(metrics.brier[row]),
                score(metrics.ece[row]),
            )
        )
    head = ("Label", "Positive", "Negative", "AUROC", "95% interval", "AUPRC", "Brier", "ECE")
    return _table(head, rows, words=1), legends


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
    return _table(head, [row], words=2)


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
    return _table(head, rows, words=1)


def site_table(run: Run) -> Table:
    """Return patients, headline and privacy cost of each site, and how it took part."""
    headline = run.measures.headline
    figure = headline.name[:1].upper() + headline.name[1:]
    head: tuple[str, ...] = ("Hospital", "Patients", figure, "Epsilon", "Delta")
    head += ("Rounds answered", "Time per round") if run.rounds else ()
    rows = []
    for name, site in sorted(run.summary["sites"].items()):
        row: tuple[str, ...] = (
            name,
            number(site["patients"]),
            score(site[headline.key]),
            epsilon(site["epsilon"]),
            number(site["delta"]),
        )
        asked = [line["sites"][name] for line in run.rounds if name in line["sites"]]
        answered = [part["seconds"] for part in asked if part["status"] == "ok"]
        if run.rounds:
            mean = sum(answered) / len(answered) if answered else None
            row += (f"{len(answered)} of {len(asked)}", duration(mean))
        rows.append(row)
    return _table(head, rows, words=1)


def threshold_table(run: Run) -> Table:
    """Return the thresholds, label by label, the best first."""
    head = ("Label", "Feature", "Risk when", "Threshold", "Unit", "Youden's J")
    if run.selection is None or run.task is None:
        return _table(head, [], words=5)
    order = {label: position for position, label in enumerate(run.task.labels.names)}
    thresholds = sorted(
        run.selection.thresholds, key=lambda t: (order[t.label], -t.score, t.feature)
    )
    return _table(head, [_threshold_row(one, run.task) for one in thresholds], words=5)


def _threshold_row(threshold: Threshold, task: Task) -> tuple[str, ...]:
    feature = task.features[threshold.feature]
    direction: str = threshold.direction
    if isinstance(feature, NumericFeature):
        cut, unit = number(threshold.value), feature.unit or DASH
    else:
        direction = {"above": "is", "below": "is not"}[direction]
        cut, unit = threshold.category or "1", DASH
    return (threshold.label, threshold.feature, direction, cut, unit, score(threshold.score))


def selection_in_words(run: Run) -> str:
    """Say where the thresholds come from."""
    method = run.card.get("selection_method")
    if method == "local":
        return (
            "Each hospital chose features on its own; its thresholds and scores stay with it, so "
            "none are shown here."
        )
    if run.selection is None:
        return "No features were selected: the model saw every feature, without thresholds."
    origin = "from the hospitals' histograms, summed"
    if any(plan.get("selection_noise") for plan in plans(run).values()):
        origin += " and noised: a J near 0 may be chance"
    return (
        f"For each label, the {counted(run.selection.top_n, 'feature')} whose best cut separates "
        f"it most, {origin}. Youden's J is the true positive rate minus the false positive rate "
        "at the cut; 1 separates perfectly."
    )


def plans(run: Run) -> dict[str, dict[str, Any]]:
    """Return each site's privacy plan, by name."""
    return dict(sorted((run.privacy.get("sites") or {}).items()))


def privacy_covers(run: Run) -> str:
    """Say which releases the epsilon covers."""
    found = plans(run).values()
    covered = []
    if any(plan["selection_noise"] for plan in found):
        covered.append("the selection of features (noised histograms)")
    covered.append("every training step (clipped and noised gradients of sampled patients)")
    releases = max((plan["metrics_releases"] for plan in found), default=0)
    if releases:
        what = f"noised {run.measures.released}, {counted(releases, 'release')}"
        covered.append(f"the metrics in this report ({what})")
    return (
        f"Each hospital's epsilon covers {listed(covered)}, together. The unit is the patient: "
        "it bounds what anyone who sees everything that left the hospital can learn about one "
        "patient's whole record there. A patient known to several hospitals pays the sum."
    )


_PLAN_COLUMNS = {
    "patients_public": "Patients declared",
    "sample_rate": "Sample rate",
    "expected_batch": "Expected batch",
    "steps_per_round": "Steps per round",
    "rounds": "Rounds",
    "max_grad_norm": "Clip norm",
    "noise_multiplier": "Training noise",
    "selection_noise": "Selection noise",
    "metrics_noise": "Metrics noise",
    "metrics_releases": "Metrics releases",
}


def privacy_table(run: Run) -> Table:
    """Return each site's plan; noise is in multiples of the sensitivity."""
    rows = [
        (
            name,
            epsilon(plan["epsilon"]),
            number(plan["delta"]),
            *(number(plan[key]) for key in _PLAN_COLUMNS),
        )
        for name, plan in plans(run).items()
    ]
    return _table(("Hospital", "Epsilon", "Delta", *_PLAN_COLUMNS.values()), rows, words=1)
