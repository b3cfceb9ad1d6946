"""Importer of the RSNA pneumonia detection challenge: boxes around opacities, for detection.

Source: Shih et al., *Augmenting the NIH chest radiograph dataset with expert annotations of
possible pneumonia*, Radiology: Artificial Intelligence 1:e180041, 2019; the challenge's own terms.
Nothing of it ships with MedFusion.

The folder of the challenge: ``stage_2_train_labels.csv`` (a row for each box, in pixels of
1024 x 1024 images; one row without a box where ``Target`` is 0) and the DICOM files named by
``patientId``, in any folder below, or pictures of any size made from them. A radiograph is negative
where ``Target`` says 0. Where ``stage_2_detailed_class_info.csv`` is there, it must say the same.

The radiographs are some of NIH ChestX-ray14, where a person has several. With the set's table of
origins (``pneumonia-challenge-dataset-mappings_2018.json``) a patient is a person; without it each
radiograph counts as a patient of its own, which a notice says. The data have no sites.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medfusion.data.cohorts.drawn_images import (
    Box,
    image_only_cohort,
    images_by_name,
    in_pixels_of,
)
from medfusion.data.cohorts.source_table import (
    binary_cells,
    first_rows,
    keep_rows,
    keep_with_images,
    mark,
    pixel_cells,
    pseudonym,
    read_source,
    refuse,
    refuse_blank,
    refuse_repeated,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.table import Table
from medfusion.errors import DataError

NAME = "rsna-pneumonia"
LABEL = "lung_opacity"
_FILE, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_ORIGINS = "pneumonia-challenge-dataset-mappings_2018.json"
_ID, _TARGET, _CLASS, _SIDES = "patientId", "Target", "class", ("x", "y", "width", "height")
_OPACITY = "Lung Opacity"
_CLASS_NAMES = (_OPACITY, "No Lung Opacity / Not Normal", "Normal")
_DRAWN_ON, _MOST = (1024, 1024), 8


def read(src: Path) -> Cohort:
    """Read the folder ``src``.

    Raises
    ------
    DataError
        If the table or all images are missing, a target is not 0 or 1, a box has no numbers or
        stands on a negative radiograph, or another file contradicts the table.
    """
    table = read_source(src / _FILE, (_ID, *_SIDES, _TARGET))
    refuse_blank(table, (_ID, _TARGET))
    refuse_repeated(table, (_ID, *_SIDES), "expected each box once, found it again")
    targets = binary_cells(table, _TARGET)
    _check_targets(table, targets)
    boxes = _boxes(table, targets)
    _check_classes(src / _CLASSES, boxes)
    notices: list[str] = []
    files = images_by_name(src)
    once = first_rows(table, _ID)
    table, images = keep_with_images(
        once, [files.get(name) for name in once.columns[_ID]], notices, column=_ID
    )
    people = _people(src / _ORIGINS, table, notices)
    studies = [
        Study(
            study_id="s" + pseudonym(NAME, name),
            patient_id="p" + pseudonym(NAME, person),
            cells={LABEL: str(int(bool(boxes[name])))},
            image=image,
            boxes=in_pixels_of(image, boxes[name], _DRAWN_ON),
        )
        for name, person, image in zip(table.columns[_ID], people, images, strict=True)
    ]
    return image_only_cohort(NAME, (LABEL,), _MOST, studies, notices)


def _check_targets(table: Table, targets: Sequence[str]) -> None:
    """Refuse boxes on negative radiographs, and radiographs that are both."""
    has_box = np.array([any(row) for row in zip(*(table.columns[s] for s in _SIDES), strict=True)])
    negative = np.array([target == "0" for target in targets])
    refuse(table, _TARGET, has_box & negative, "expected 1 beside a box, found 0")
    said: dict[str, set[str]] = defaultdict(set)
    for name, target in zip(table.columns[_ID], targets, strict=True):
        said[name].add(target)
    both = mark(table.columns[_ID], lambda name: len(said[name]) > 1)
    refuse(table, _ID, both, "expected one target of an image, found 0 and 1")


def _boxes(table: Table, targets: Sequence[str]) -> Mapping[str, list[Box]]:
    """Return the boxes of every image, none of a negative one."""
    found: dict[str, list[Box]] = {name: [] for name in table.columns[_ID]}
    drawn = keep_rows(table, np.array([target == "1" for target in targets]))
    sides = [pixel_cells(drawn, side) for side in _SIDES]
    for name, x, y, width, height in zip(drawn.columns[_ID], *sides, strict=True):
        found[name].append((LABEL, x, y, width, height))
    return found


def _check_classes(path: Path, boxes: Mapping[str, Sequence[Box]]) -> None:
    """Refuse classes that contradict the boxes; there need not be any."""
    if not path.is_file():
        return
    table = read_source(path, (_ID, _CLASS))
    names, classes = table.columns[_ID], table.columns[_CLASS]
    unknown = np.array([name not in _CLASS_NAMES for name in classes])
    refuse(table, _CLASS, unknown, f"expected one of {', '.join(_CLASS_NAMES)}")
    wrong = [
        name in boxes and bool(boxes[name]) != (said == _OPACITY)
        for name, said in zip(names, classes, strict=True)
    ]
    refuse(table, _CLASS, np.array(wrong), f"contradict {_FILE}, whose boxes say otherwise")


def _people(path: Path, table: Table, notices: list[str]) -> Sequence[str]:
    """Return who each image is of."""
    names = table.columns[_ID]
    if not path.is_file():
        notices.append(
            f"{path.name}: not there, so that each radiograph counts as a patient of its own, "
            "though some are of one person"
        )
        return names
    try:
        origins = json.loads(path.read_text(encoding="utf-8"))
        person = {str(o["subset_img_id"]): str(o["img_id"]).partition("_")[0] for o in origins}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path}: expected a list of entries with img_id and subset_img_id, found something "
            "else; fetch it again"
        ) from None
    refuse(table, _ID, mark(names, lambda name: name not in person), f"not found in {path.name}")
    return [person[name] for name in names]
