"""Labels as arrays, one column for each of the task's label names.

Legend: N studies, L labels, M boxes of a study at most.
"""

import numpy as np
from numpy.typing import NDArray

from medfusion.data.boxes import Boxes
from medfusion.data.task import Task


def label_array(cells: NDArray[np.float64], task: Task) -> NDArray[np.float32]:
    """Return labels [N, L] of what the cells of the label columns hold (NaN = unknown).

    A class's index becomes 1 in the column of the class and 0 in the others.
    """
    if task.task.kind != "multiclass":
        return cells.astype(np.float32)
    one_hot = (cells == np.arange(len(task.labels.names))).astype(np.float32)
    return np.where(np.isnan(cells), np.float32(np.nan), one_hot)


def truth_array(labels: NDArray[np.float32], boxes: Boxes | None) -> NDArray[np.float32]:
    """Return what outputs are measured against: labels [N, L], of detection [N, L + 5 M].

    Behind the labels stand the M boxes of a study: their corners as shares of the image, box by
    box, then their classes.
    """
    if boxes is None:
        return labels
    corners = boxes.corners.reshape(len(labels), 4 * boxes.classes.shape[1])
    return np.concatenate([labels, corners, boxes.classes.astype(np.float32)], axis=1)


def binary_labels(labels: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """Return labels [N, L] as 1 and 0 (NaN = unknown), for what asks which features tell them.

    The target of a regression counts as 1 in the upper half of its public range.
    """
    if task.task.kind != "regression":
        return labels
    upper = (labels > sum(task.labels.range) / 2).astype(np.float32)
    return np.where(np.isnan(labels), np.float32(np.nan), upper)
