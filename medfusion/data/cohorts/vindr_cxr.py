"""Importer of VinDr-CXR as its challenge has it: boxes of 14 findings by three readers each.

Source: Nguyen et al., *VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations*,
Scientific Data 9:429, 2022; PhysioNet's and the challenge's own terms. Nothing of it ships with
MedFusion.

The folder of the challenge: ``train.csv`` (a row for each box of each reader, in pixels of the
DICOM file; ``No finding`` without a box) and the DICOM files named by ``image_id``, in any folder
below, or pictures made from them. Pictures with boxes need ``train_meta.csv`` (``image_id``,
``dim0``, ``dim1``: height and width of the DICOM file), since they are often of another size.

What several readers drew becomes one truth by majority, see `agreed_boxes`:

- a finding is there (1) if more than half of an image's readers drew it, and more than half of them
  at one place; a place's box is the mean of theirs;
- it is not there (0) if at most half of them drew it: the others looked and said so by drawing
  something else or ``No finding``;
- it is unknown (blank) if most drew it, but at no place together.

Age and sex are in the headers of some DICOM files: pictures alone have no features. The data name
no patients, so each radiograph counts as a patient of its own, and no sites.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medfusion.data.cohorts.drawn_images import (
    Box,
    detection_cohort,
    header_cells,
    header_features,
    images_by_name,
    in_pixels_of,
)
from medfusion.data.cohorts.reader_agreement import Reading, agreed_boxes
from medfusion.data.cohorts.source_table import (
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
from medfusion.data.findings import plural
from medfusion.data.image_files import is_dicom
from medfusion.data.table import Table

NAME = "vindr-cxr"
_SPELLED = {
    "Aortic enlargement": "aortic_enlargement",
    "Atelectasis": "atelectasis",
    "Calcification": "calcification",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "ILD": "ild",
    "Infiltration": "infiltration",
    "Lung Opacity": "lung_opacity",
    "Nodule/Mass": "nodule_mass",
    "Other lesion": "other_lesion",
    "Pleural effusion": "pleural_effusion",
    "Pleural thickening": "pleural_thickening",
    "Pneumothorax": "pneumothorax",
    "Pulmonary fibrosis": "pulmonary_fibrosis",
}
LABELS = tuple(_SPELLED.values())
_NOTHING = "No finding"
_ID, _CLASS, _READER = "image_id", "class_name", "rad_id"
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_FILE, _SIZES, _HEIGHT, _WIDTH = "train.csv", "train_meta.csv", "dim0", "dim1"
_MOST = 32

_Readings = Mapping[str, Mapping[str, Reading]]


def read(src: Path) -> Cohort:
    """Read the folder ``src``.

    Raises
    ------
    DataError
        If the table or all images are missing, a finding is unknown, a box has no numbers or no
        area, a reader says ``No finding`` beside a box, or a picture with boxes is without the size
        of its DICOM file.
    """
    table = read_source(src / _FILE, (_ID, _CLASS, _READER, *_CORNERS))
    refuse_blank(table, (_ID, _CLASS, _READER))
    unknown = mark(table.columns[_CLASS], lambda cell: cell not in (*_SPELLED, _NOTHING))
    refuse(table, _CLASS, unknown, f"expected one of {', '.join((*_SPELLED, _NOTHING))}")
    readings = _readings(table)
    sizes = _sizes(src / _SIZES)
    notices = ["patients are not named, so that each radiograph counts as one of its own"]
    files = images_by_name(src)
    once = first_rows(table, _ID)
    once, images = keep_with_images(
        once, [files.get(name) for name in once.columns[_ID]], notices, column=_ID
    )
    _refuse_unsized(once, images, readings, sizes)
    features = header_features(images, ("age", "sex"))
    cells = header_cells(once, images, features, notices)
    studies = [
        _study(
            name,
            images[row],
            readings[name],
            sizes.get(name),
            {k: c[row] for k, c in cells.items()},
        )
        for row, name in enumerate(once.columns[_ID])
    ]
    unclear = sum(not all(study.cells[label] for label in LABELS) for study in studies)
    if unclear:
        notices.append(
            f"{plural(unclear, 'study')} with a finding that most readers saw, but not at one "
            "place: unknown"
        )
    return detection_cohort(NAME, LABELS, _MOST, studies, notices, features)


def _study(
    name: str,
    image: Path,
    readings: Mapping[str, Reading],
    size: tuple[int, int] | None,
    features: Mapping[str, str],
) -> Study:
    cells: dict[str, str] = {**features}
    boxes: list[Box] = []
    for label in LABELS:
        drawn = {reader: reading.get(label, []) for reader, reading in readings.items()}
        found = agreed_boxes(drawn)
        cells[label] = "" if found is None else str(int(bool(found)))
        boxes += [(label, x, y, right - x, low - y) for x, y, right, low in found or ()]
    return Study(
        study_id="s" + pseudonym(NAME, name),
        patient_id="p" + pseudonym(NAME, name),
        cells=cells,
        image=image,
        boxes=boxes if size is None else in_pixels_of(image, boxes, size),
    )


def _refuse_unsized(
    table: Table, images: Sequence[Path], readings: _Readings, sizes: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse pictures with boxes of which it is not known how large the DICOM file was."""
    unsized = [
        name not in sizes
        and any(boxes for reading in readings[name].values() for boxes in reading.values())
        and not is_dicom(image)
        for name, image in zip(table.columns[_ID], images, strict=True)
    ]
    message = (
        f"boxes are in pixels of the DICOM file, whose size a picture does not tell: expected its "
        f"{_HEIGHT} and {_WIDTH} in {_SIZES}, found none"
    )
    refuse(table, _ID, np.array(unsized, dtype=bool), message)


def _readings(table: Table) -> _Readings:
    """Return image -> reader -> finding -> corners of boxes."""
    said_nothing = np.array([cell == _NOTHING for cell in table.columns[_CLASS]])
    keys = list(zip(table.columns[_ID], table.columns[_READER], strict=True))
    empty = {key for key, nothing in zip(keys, said_nothing, strict=True) if nothing}
    drawn = keep_rows(table, ~said_nothing)
    both = [key in empty for key in zip(drawn.columns[_ID], drawn.columns[_READER], strict=True)]
    refuse(drawn, _CLASS, np.array(both, dtype=bool), f"a box beside {_NOTHING!r} of its reader")
    refuse_repeated(drawn, (_ID, _READER, _CLASS, *_CORNERS), "expected each box once")
    left, top, right, low = corners = [pixel_cells(drawn, name) for name in _CORNERS]
    for name, near, far in (("x_max", left, right), ("y_max", top, low)):
        flat = np.array(far) <= np.array(near)
        refuse(drawn, name, flat, f"expected more than {name[0]}_min, found as much or less")
    found: dict[str, dict[str, dict[str, list[tuple[float, ...]]]]] = {}
    for image, reader in keys:
        found.setdefault(image, {}).setdefault(reader, defaultdict(list))
    columns = (drawn.columns[name] for name in (_ID, _READER, _CLASS))
    for image, reader, label, *box in zip(*columns, *corners, strict=True):
        found[image][reader][_SPELLED[label]].append(tuple(box))
    return found


def _sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Return image -> width and height of its DICOM file; nothing without the table."""
    if not path.is_file():
        return {}
    table = read_source(path, (_ID, _HEIGHT, _WIDTH))
    widths, heights = pixel_cells(table, _WIDTH), pixel_cells(table, _HEIGHT)
    for name, sides in ((_WIDTH, widths), (_HEIGHT, heights)):
        refuse(table, name, np.array(sides) < 1, "expected 1 or more pixels")
    return {
        name: (int(width), int(height))
        for name, width, height in zip(table.columns[_ID], widths, heights, strict=True)
    }
