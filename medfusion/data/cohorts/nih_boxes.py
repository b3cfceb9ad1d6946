"""Importer of the boxes of NIH ChestX-ray14: where eight of its findings are, for detection.

The official folder of `medfusion.data.cohorts.nih_chestxray14` with ``BBox_List_2017.csv``: some
980 boxes on 880 radiographs, in pixels of the images of 1024 pixels. A radiograph is read if
nobody need guess: where each of its findings (of the eight) has a box, or it has none of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfusion.data.cohorts import nih_chestxray14
from medfusion.data.cohorts.nih_chestxray14 import FEATURES
from medfusion.data.cohorts.source_table import (
    mark,
    pixel_cells,
    read_source,
    refuse,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.findings import plural
from medfusion.errors import DataError

NAME = "nih-boxes"
FILE = "BBox_List_2017.csv"
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
_SPELLED = {"Infiltrate": "Infiltration"}  # as the list of boxes has it
_IMAGE, _LABEL, _SIDES = "Image Index", "Finding Label", ("Bbox [x", "y", "w", "h]")
_IMAGE_SIZE, _MOST = 256, 16

_Box = tuple[str, float, float, float, float]


def read(src: Path) -> Cohort:
    """Read the folder ``src`` in the official layout.

    Raises
    ------
    DataError
        As of `nih_chestxray14.read`; and if the list of boxes is not there, names another
        finding, or has no numbers.
    """
    boxes = _read_boxes(src)
    cohort = nih_chestxray14.read(src)
    marked = [_marked(study, boxes) for study in cohort.studies]
    studies = [study for study in marked if study is not None]
    if not any(study.boxes for study in studies):
        raise DataError(f"{src / FILE}: expected boxes of the images in {src}, found none of them")
    left_out = len(marked) - len(studies)
    found = (f"{plural(left_out, 'study')} left out, whose findings have no box",)
    return Cohort(
        task=_task(),
        studies=studies,
        notices=(*cohort.notices, *(found if left_out else ())),
        model="mdf_net",
        rounds=40,
        batch_size=8,
        learning_rate=1e-3,
        training={"schedule": "cosine", "augmentation": "light"},
    )


def _marked(study: Study, boxes: Mapping[str, Sequence[_Box]]) -> Study | None:
    """Return a study with its boxes; None where a finding has none."""
    own = boxes.get(study.image.name, ()) if study.image else ()
    boxed = {label for label, *_ in own}
    if any(study.cells[name] == "1" and name not in boxed for name in LABELS):
        return None
    kept = {name: cell for name, cell in study.cells.items() if name in FEATURES}
    labels = {name: str(int(name in boxed)) for name in LABELS}
    return replace(study, cells={**kept, **labels}, boxes=own)


def _task() -> dict[str, Any]:
    # Not the set's own split: images with boxes are said to be among its test images alone.
    sections = task_sections(
        NAME, features=FEATURES, labels=LABELS, image_size=_IMAGE_SIZE, split=False
    )
    sections["task"] |= {"kind": "detection"}
    return {**sections, "boxes": {"most": _MOST}}


def _read_boxes(src: Path) -> Mapping[str, Sequence[_Box]]:
    """Return the boxes of each image by its file name."""
    table = read_source(src / FILE, (_IMAGE, _LABEL, *_SIDES))
    labels = [_SPELLED.get(cell, cell) for cell in table.columns[_LABEL]]
    unknown = mark(labels, lambda label: label not in LABELS)
    refuse(table, _LABEL, unknown, f"expected one of {', '.join(LABELS)}")
    sides = [pixel_cells(table, name) for name in _SIDES]
    boxes = defaultdict(list)
    for image, *box in zip(table.columns[_IMAGE], labels, *sides, strict=True):
        label, x, y, width, height = box
        boxes[image].append((label, x, y, width, height))
    return boxes
