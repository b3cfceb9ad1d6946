"""The report's table of thresholds: which features tell a label, and where the cut is."""

from medfusion.data.task import NumericFeature, Task
from medfusion.data.thresholds import Threshold
from medfusion.evaluation.report.privacy import plans
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.table import Table, table
from medfusion.evaluation.report.wording import DASH, counted, number, score


def threshold_table(run: Run) -> Table | None:
    """Return the thresholds, label by label, the best first; None without any."""
    if run.selection is None or run.task is None or not run.selection.thresholds:
        return None
    head = ("Label", "Feature", "Risk when", "Threshold", "Unit", "Youden's J")
    order = {label: position for position, label in enumerate(run.task.labels.names)}
    thresholds = sorted(
        run.selection.thresholds, key=lambda t: (order[t.label], -t.score, t.feature)
    )
    rows = [_threshold_row(one, run.task) for one in thresholds]
    return table("Thresholds", head, rows, words=5)


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
