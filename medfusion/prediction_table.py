"""What a model says of a site's studies, as a table that a hospital reads.

=============  ==================================================================================
kind of task   columns between ``study_id`` and ``missing``
=============  ==================================================================================
multilabel     for each label ``LABEL_probability`` and ``LABEL_decision`` (1 or 0)
multiclass     for each class ``CLASS_probability``; ``decision``: the most probable class
regression     ``TARGET_value`` and ``TARGET_unit``
detection      a row for each box: ``label``, ``score``, ``decision``, and ``x``, ``y``,
               ``width``, ``height`` in pixels of the stored image; a row without them for a
               study in which nothing is found
=============  ==================================================================================

``missing`` names the modalities that the model reads and the study lacks, joined with ``+``.

Legend: N studies, W outputs of a model for a study, D detections of a study, L labels.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.images import stored_size
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.errors import DataError
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.metrics import sigmoid
from medfusion.evaluation.regression_measures import RegressionMeasures

DECISION_THRESHOLD = 0.5  # public; of a probability

_BOX = ("label", "score", "decision", "x", "y", "width", "height")


@dataclass(frozen=True, repr=False)
class PredictionTable:
    """Rows of cells under a header; some studies have several rows."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def to_csv(self) -> str:
        """Return the table as text, rows in the order of the study ids."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return text.getvalue()


def prediction_table(
    task: Task, studies: Studies, outputs: NDArray[Any], *, modalities: Sequence[str]
) -> PredictionTable:
    """Return what a model says of studies.

    Parameters
    ----------
    outputs
        [N, W], of a detector [N, D, 6], as `medfusion.scoring.apply_model` returns them.
    modalities
        What the model reads.

    Raises
    ------
    DataError
        If an image's size, which the place of its boxes depends on, cannot be read.
    """
    if task.detects:
        columns, cells = _BOX, _boxes(task, studies, outputs)
    else:
        columns, rows = _COLUMNS[task.task.kind](task, outputs)
        cells = [[row] for row in rows]
    missing = missing_modalities(studies, modalities)
    return PredictionTable(
        ("study_id", *columns, "missing"),
        [
            (str(study), *row, lacks)
            for study, of_study, lacks in zip(studies.study_ids, cells, missing, strict=True)
            for row in of_study
        ],
    )


def missing_modalities(studies: Studies, modalities: Sequence[str]) -> list[str]:
    """Return for each study which of ``modalities`` it lacks, joined with ``+``.

    The columns count as missing where all of them are.
    """
    lacks = {
        "image": [image is None for image in studies.images],
        "tabular": np.isnan(studies.features).all(axis=1).tolist(),
        "text": [note is None for note in studies.notes],
    }
    return [
        "+".join(name for name in modalities if lacks[name][study]) for study in range(len(studies))
    ]


_Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # names of columns, cells of each study


def _labels(task: Task, outputs: NDArray[Any]) -> _Table:
    names = task.labels.names
    logits = measures_of(task).scores(outputs)
    assert logits is not None
    columns = tuple(f"{name}_{what}" for name in names for what in ("probability", "decision"))
    return columns, [
        tuple(cell for p in row for cell in (_number(p), str(int(p >= DECISION_THRESHOLD))))
        for row in sigmoid(logits)
    ]


def _classes(task: Task, outputs: NDArray[Any]) -> _Table:
    names = task.labels.names
    logits = measures_of(task).scores(outputs)
    assert logits is not None
    columns = (*(f"{name}_probability" for name in names), "decision")
    return columns, [
        (*(_number(p) for p in row), names[int(row.argmax())]) for row in sigmoid(logits)
    ]


def _target(task: Task, outputs: NDArray[Any]) -> _Table:
    (name,), measures = task.labels.names, measures_of(task)
    assert isinstance(measures, RegressionMeasures)
    values = measures.predictions(outputs)[:, 0]
    columns = (f"{name}_value", f"{name}_unit")
    return columns, [(_number(value), measures.unit) for value in values]


_COLUMNS = {"multilabel": _labels, "multiclass": _classes, "regression": _target}


def _boxes(task: Task, studies: Studies, outputs: NDArray[Any]) -> list[list[tuple[str, ...]]]:
    """Return the cells of each study's boxes, the surest first."""
    assert task.image is not None
    height, width = task.image.plane
    names = task.labels.names
    found: list[list[tuple[str, ...]]] = []
    for study, path in enumerate(studies.images):
        boxes = outputs[study][outputs[study, :, 5] > 0].astype(np.float64)
        boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
        if path is None or not len(boxes):
            found.append([("",) * len(_BOX)])
            continue
        size = stored_size(path)
        if size is None:
            raise DataError(f"row {studies.rows[study]}: the size of its image cannot be read")
        stretch = np.tile(np.array(size) / (width, height), 2)
        corners = boxes[:, :4] * stretch
        sides = corners[:, 2:] - corners[:, :2]
        found.append(
            [
                (
                    names[int(box[5]) - 1],
                    _number(box[4]),
                    str(int(box[4] >= DECISION_THRESHOLD)),
                    *(f"{pixels:.2f}" for pixels in (*corner, *side)),
                )
                for box, corner, side in zip(boxes, corners[:, :2], sides, strict=True)
            ]
        )
    return found


def _number(value: float) -> str:
    return f"{value:.6g}"
