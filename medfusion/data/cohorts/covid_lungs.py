"""Importer of the lungs in the COVID-19 image data collection: boxes, for detection.

The same radiographs, sites and features as those of `medfusion.data.cohorts.covid_chestxray`, with
``lung_boxes.csv``: a box of the left and of the right lung, in pixels of the image. Source of the
boxes: the fork of GeneralBlockchain (CC BY 4.0). Lungs are easy to find: a figure on them says
nothing of a disease. A lung without a box is unknown, since every patient has it.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfusion.data.cohorts import covid_chestxray
from medfusion.data.cohorts.covid_chestxray import FEATURES
from medfusion.data.cohorts.source_table import (
    find_images,
    mark,
    pixel_cells,
    read_source,
    refuse,
    refuse_repeated,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.findings import plural

NAME = "covid-lungs"
LABELS = ("right_lung", "left_lung")
_IMAGE, _LABEL, _SIDES = "image", "category", ("x", "y", "w", "h")
_IMAGE_SIZE = 128  # pixels of a side

_Boxes = Mapping[Path, list[tuple[str, float, float, float, float]]]


def read(src: Path) -> Cohort:
    """Read the folder ``src``; the sites are its regions.

    Raises
    ------
    DataError
        As of `covid_chestxray.read`; and if a box is of something else than a lung, repeats
        another one, or has no numbers.
    """
    cohort, boxes = covid_chestxray.read(src), _read_boxes(src)
    studies = [_with_boxes(study, boxes) for study in cohort.studies]
    without = sum(not study.boxes for study in studies)
    found = [f"{plural(without, 'study')} without a box"] if without else []
    return Cohort(
        task=_task(),
        studies=studies,
        notices=(*cohort.notices, *found),
        model="mdf_net",
        rounds=20,
        batch_size=8,
        learning_rate=1e-3,
        training={"schedule": "cosine", "augmentation": "light"},
        # Which features tell of a label is no question where every patient has both lungs.
        sections={"selection": {"method": "none"}},
    )


def _with_boxes(study: Study, boxes: _Boxes) -> Study:
    own = boxes.get(study.image, []) if study.image else []
    drawn = {label for label, *_ in own}
    labels = {name: "1" if name in drawn else "" for name in LABELS}
    features = {name: study.cells[name] for name in FEATURES}
    return replace(study, cells=features | labels, boxes=own)


def _task() -> dict[str, Any]:
    sections = task_sections(NAME, features=FEATURES, labels=LABELS, image_size=_IMAGE_SIZE)
    sections["task"] |= {"kind": "detection"}
    return {**sections, "boxes": {"most": len(LABELS)}}


def _read_boxes(src: Path) -> _Boxes:
    """Return the boxes of each image."""
    table = read_source(src / "lung_boxes.csv", (_IMAGE, _LABEL, *_SIDES))
    labels = table.columns[_LABEL]
    unknown = mark(labels, lambda cell: cell not in LABELS)
    refuse(table, _LABEL, unknown, f"expected {' or '.join(LABELS)}, found something else")
    refuse_repeated(table, (_IMAGE, _LABEL), "expected each lung of an image once, found it again")
    sides = [pixel_cells(table, name) for name in _SIDES]
    boxes = defaultdict(list)
    for image, label, x, y, width, height in zip(
        find_images(table, _IMAGE, src), labels, *sides, strict=True
    ):
        if image is not None:
            boxes[image].append((label, x, y, width, height))
    return boxes
