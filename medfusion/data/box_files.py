"""Files of boxes, ``boxes.csv`` or COCO JSON, as rows of text and numbers.

Legend: R boxes.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.columns import number_of, resolved_image
from medfusion.data.findings import Finding
from medfusion.data.site import FilesOptions
from medfusion.data.table import read_table
from medfusion.errors import DataError

SIDES = ("x", "y", "width", "height")
LABEL = "label"


@dataclass(frozen=True, eq=False, repr=False)
class BoxRows:
    """Boxes as a file has them; nothing is checked yet.

    Attributes
    ----------
    where
        The file, for people.
    rows
        int64 [R], spreadsheet rows; of COCO JSON the number of the annotation, from 1.
    studies, labels
        R names.
    xywh
        float64 [R, 4]: left, top, width and height in pixels of the stored image; NaN where the
        file has no number.
    """

    where: str
    rows: NDArray[np.int64]
    studies: Sequence[str]
    labels: Sequence[str]
    xywh: NDArray[np.float64]


def read_box_file(
    path: Path,
    options: FilesOptions,
    *,
    study_column: str,
    images: Path,
    study_of_image: Sequence[tuple[Path, str]],
) -> tuple[BoxRows, list[Finding]]:
    """Read a table of boxes, or COCO JSON if the file's name ends in ``.json``.

    Parameters
    ----------
    options
        How the site writes its tables.
    study_column
        The column of study ids in a table of boxes.
    images
        The folder that COCO JSON's names of images are relative to.
    study_of_image
        Pairs of an image's real path and a study: COCO JSON knows images only.

    Returns
    -------
    The rows, and findings about the file's form.

    Raises
    ------
    DataError
        If the file is not there, or is no table and no COCO JSON.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of boxes; see [files] boxes")
    if path.suffix.lower() == ".json":
        return _read_coco(path, images, study_of_image), []
    table, findings = read_table(path, options)
    columns = (study_column, LABEL, *SIDES)
    for name in columns:
        if name not in table.columns:
            message = f"no such column{table.similar(name)}; expected {', '.join(columns)}"
            findings.append(Finding("error", "missing-column", table.where(name), message))
    text = {name: table.columns.get(name, [""] * len(table)) for name in columns}
    numbers = [[_number(cell, table.decimal) for cell in text[side]] for side in SIDES]
    xywh = np.array(numbers, dtype=np.float64).reshape(4, len(table)).T
    if any(finding.code == "missing-column" for finding in findings):
        nothing = np.zeros(0, dtype=np.int64)
        return BoxRows(table.name, nothing, [], [], xywh[:0]), findings
    return BoxRows(table.name, table.rows, text[study_column], text[LABEL], xywh), findings


def _number(cell: str, decimal: str) -> float:
    number = number_of(cell, decimal)
    return np.nan if number is None else number


def _read_coco(path: Path, images: Path, study_of_image: Sequence[tuple[Path, str]]) -> BoxRows:
    """Read ``images``, ``annotations`` and ``categories`` of a COCO file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {item["id"]: str(item["name"]) for item in content["categories"]}
        files = {item["id"]: str(item["file_name"]) for item in content["images"]}
        found = [
            (number, files[item["image_id"]], names[item["category_id"]], _sides(item["bbox"]))
            for number, item in enumerate(content["annotations"], start=1)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not readable as COCO JSON ({type(error).__name__}): expected images with "
            "id and file_name, categories with id and name, annotations with image_id, "
            "category_id and bbox = [x, y, width, height]"
        ) from None
    studies = defaultdict(list)
    for image, study in study_of_image:
        studies[str(image)].append(study)
    parents: dict[str, str] = {}  # a link to the folder or to a file is the same image
    real = {file: resolved_image(images, file, parents) for _, file, *_ in found}
    # An image of several studies is drawn on once, for all of them.
    spread = [
        (number, study, label, sides)
        for number, file, label, sides in found
        for study in studies.get(real[file], [""])
    ]
    return BoxRows(
        where=f"{path.name}, annotations",
        rows=np.array([number for number, *_ in spread], dtype=np.int64),
        studies=[study for _, study, _, _ in spread],
        labels=[label for *_, label, _ in spread],
        xywh=np.array([sides for *_, sides in spread], dtype=np.float64).reshape(-1, 4),
    )


def _sides(bbox: Any) -> list[float]:
    x, y, width, height = (float(side) for side in bbox)
    return [x, y, width, height]
