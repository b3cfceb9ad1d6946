"""What a model says of a site's studies, as a table that a hospital reads.

=============  ==================================================================================
kind of task   columns between ``study_id`` and ``missing``
=============  ==================================================================================
multilabel     for each label ``LABEL_probability``, ``LABEL_decision`` (1 or 0) and ``LABEL_set``
multiclass     for each class ``CLASS_probability``; ``decision``: that of highest score; ``set``
regression     ``TARGET_value`` and ``TARGET_unit``
detection      a row for each box: ``label``, ``score``, ``decision``, and ``x``, ``y``,
               ``width``, ``height`` in pixels of the stored image; a row without them for a
               study in which nothing is found
=============  ==================================================================================

Probabilities and decisions are those of the model's calibration. A set holds the truth with the
wanted chance: its members are joined with ``+`` (1: the label is there, 0: it is not), ``none``
where nothing fits. Without a calibration there are no sets, probabilities are the model's own, and
a decision is made at `DECISION_THRESHOLD`. A box is decided as a study with that box alone.

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
from medfusion.evaluation.calibration import Calibration, Readings
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.metrics import sigmoid
from medfusion.evaluation.regression_measures import RegressionMeasures

DECISION_THRESHOLD = 0.5  # public; of a probability

_BOX: tuple[str, ...] = ("label", "score", "decision", "x", "y", "width", "height")


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
    task: Task,
    studies: Studies,
    outputs: NDArray[Any],
    *,
    modalities: Sequence[str],
    calibration: Calibration | None,
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
        columns, cells = _BOX, _boxes(task, studies, outputs, calibration)
    else:
        columns, rows = _columns(task, outputs, calibration)
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
    lacks: dict[str, list[bool]] = {
        "image": [image is None for image in studies.images],
        "tabular": [bool(np.isnan(row).all()) for row in studies.features],
        "text": [note is None for note in studies.notes],
    }
    return [
        "+".join(name for name in modalities if lacks[name][study]) for study in range(len(studies))
    ]


_Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # names of columns, cells of each study


def read_scores(
    task: Task, outputs: NDArray[Any], calibration: Calibration | None
) -> Readings | None:
    """Return what outputs say of labels; without a calibration sets hold everything.

    None where nothing is told of labels.
    """
    logits = measures_of(task).scores(outputs)
    if logits is None:
        return None
    if calibration is not None:
        return calibration.read(logits)
    told, anything = sigmoid(logits), np.ones(logits.shape, dtype=bool)
    exclusive = task.task.kind == "multiclass"
    top = told == told.max(axis=-1, keepdims=True)
    return Readings(told, top if exclusive else told >= DECISION_THRESHOLD, anything, anything)


def _columns(task: Task, outputs: NDArray[Any], calibration: Calibration | None) -> _Table:
    told, names, sets = (
        read_scores(task, outputs, calibration),
        task.labels.names,
        calibration is not None,
    )
    if told is None:
        return _target(task, outputs)
    if task.task.kind == "multiclass":
        return _classes(names, told, with_sets=sets)
    return _labels(names, told, with_sets=sets)


def _labels(names: Sequence[str], told: Readings, *, with_sets: bool) -> _Table:
    parts = ("probability", "decision", "set")[: 3 if with_sets else 2]
    members = np.stack([told.absent, told.present], axis=-1)  # [N, L, 2]

    def cells(study: int, label: int) -> tuple[str, ...]:
        return (
            _number(told.probabilities[study, label]),
            str(int(told.decisions[study, label])),
            _set(("0", "1"), members[study, label]),
        )[: len(parts)]

    return tuple(f"{name}_{part}" for name in names for part in parts), [
        tuple(cell for label in range(len(names)) for cell in cells(study, label))
        for study in range(len(members))
    ]


def _classes(names: Sequence[str], told: Readings, *, with_sets: bool) -> _Table:
    columns = (*(f"{name}_probability" for name in names), "decision", "set")
    kept = len(columns) - (not with_sets)
    return columns[:kept], [
        (*map(_number, probabilities), names[int(decided.argmax())], _set(names, members))[:kept]
        for probabilities, decided, members in zip(
            told.probabilities, told.decisions, told.present, strict=True
        )
    ]


def _set(names: Sequence[str], members: NDArray[np.bool_]) -> str:
    held = [name for name, member in zip(names, members, strict=True) if member]
    return "+".join(held) if held else "none"


def _target(task: Task, outputs: NDArray[Any]) -> _Table:
    (name,), measures = task.labels.names, measures_of(task)
    assert isinstance(measures, RegressionMeasures)
    values = measures.predictions(outputs)[:, 0]
    columns = (f"{name}_value", f"{name}_unit")
    return columns, [(_number(value), measures.unit) for value in values]


def _boxes(
    task: Task, studies: Studies, outputs: NDArray[Any], calibration: Calibration | None
) -> list[list[tuple[str, ...]]]:
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
        read = read_scores(task, boxes[:, None], calibration)  # as if each were alone
        assert read is not None
        sides = corners[:, 2:] - corners[:, :2]
        found.append(
            [
                (
                    names[int(box[5]) - 1],
                    _number(box[4]),
                    str(int(decided[int(box[5]) - 1])),
                    *(f"{pixels:.2f}" for pixels in (*corner, *side)),
                )
                for box, decided, corner, side in zip(
                    boxes, read.decisions, corners[:, :2], sides, strict=True
                )
            ]
        )
    return found


def _number(value: float) -> str:
    return f"{value:.6g}"
