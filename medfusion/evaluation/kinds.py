"""Which measures a task has."""

from medfusion.data.task import Task
from medfusion.evaluation.detection_measures import DetectionMeasures
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.multiclass_measures import MulticlassMeasures
from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from medfusion.evaluation.regression_measures import RegressionMeasures


def measures_of(task: Task) -> Measures:
    """Return the measures of a task."""
    names = task.labels.names
    if task.task.kind == "multiclass":
        return MulticlassMeasures(names)
    if task.task.kind == "regression":
        return RegressionMeasures(names, *task.labels.range, task.labels.unit)
    if task.detects:
        assert task.image is not None, "boxes are drawn on images"
        return DetectionMeasures(names, task.image.plane)
    return MultilabelMeasures(names)
