"""Files of boxes, ``boxes.csv`` or COCO JSON, as rows of text and numbers.

Legend: R boxes, I images.
"""

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.columns import number_of, resolved_image
from medfusion.data.findings import Cells, Finding, plural
from medfusion.data.site import FilesOptions
from medfusion.data.table import read_table
from medfusion.errors import DataError

SIDES = ("x", "y", "width", "height")
LABEL = "label"


@dataclass(frozen=True, eq=False, repr=False)
class ListedImages:
    """The images that a COCO file says were looked at, with boxes or without, and for what.

    Attributes
    ----------
    numbers
        int64 [I], place in the file's list, from 1; an image of several studies stands here once
        for each.
    studies
        I names; blank for the image of no study.
    sizes
        float64 [I, 2], width and height that the file declares; NaN where it does not.
    categories
        Names of what was looked for in each of them.
    """

    numbers: NDArray[np.int64]
    studies: Sequence[str]
    sizes: NDArray[np.float64]
    categories: Sequence[str]


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
    listed
        Of COCO JSON; a table of boxes cannot list images.
    """

    where: str
    rows: NDArray[np.int64]
    studies: Sequence[str]
    labels: Sequence[str]
    xywh: NDArray[np.float64]
    listed: ListedImages | None = None


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
        return _read_coco(path, images, study_of_image)
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


def _read_coco(
    path: Path, images: Path, study_of_image: Sequence[tuple[Path, str]]
) -> tuple[BoxRows, list[Finding]]:
    """Read ``images``, ``annotations`` and ``categories`` of a COCO file."""
    coco = _parsed(path)
    findings = _odd_annotations(path.name, coco.annotations)
    for ids, noun in ((coco.image_ids, "image"), (coco.category_ids, "category")):
        message = (
            f"has the id of an earlier {noun}; give each {noun} an id of its own, here and in the "
            "annotations"
        )
        cells = _numbered(path.name, len(ids), noun)
        findings += cells.finding(_repeats(ids), "duplicate-id", message)
    studies = defaultdict(list)
    for image, study in study_of_image:
        studies[str(image)].append(study)
    parents: dict[str, str] = {}  # a link to the folder or to a file is the same image
    # An image of several studies is drawn on once, for all of them.
    of_file = {
        file: studies.get(resolved_image(images, file, parents), [""]) for file in coco.files
    }
    listed = [
        (number, study, size)
        for number, (file, size) in enumerate(zip(coco.files, coco.sizes, strict=True), start=1)
        for study in of_file[file]
    ]
    spread = [
        (number, study, each)
        for number, each in enumerate(coco.annotations, start=1)
        for study in of_file.get(each.file, [""])
    ]
    rows = BoxRows(
        where=path.name,
        rows=np.array([number for number, *_ in spread], dtype=np.int64),
        studies=[study for _, study, _ in spread],
        labels=[each.label for *_, each in spread],
        xywh=np.array([each.sides for *_, each in spread], dtype=np.float64).reshape(-1, 4),
        listed=ListedImages(
            numbers=np.array([number for number, *_ in listed], dtype=np.int64),
            studies=[study for _, study, _ in listed],
            sizes=np.array([size for *_, size in listed], dtype=np.float64).reshape(-1, 2),
            categories=coco.categories,
        ),
    )
    return rows, findings


@dataclass(frozen=True)
class _Annotation:
    file: str  # blank: no image of the file
    label: str
    sides: tuple[float, ...]
    crowd: bool
    outlined: bool


@dataclass(frozen=True)
class _Coco:
    """What we read of a COCO file."""

    category_ids: Sequence[Hashable]
    categories: Sequence[str]
    image_ids: Sequence[Hashable]
    files: Sequence[str]
    sizes: Sequence[tuple[float, float]]
    annotations: Sequence[_Annotation]


def _parsed(path: Path) -> _Coco:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories, images = content["categories"], content["images"]
        names = {item["id"]: str(item["name"]) for item in categories}
        files = {item["id"]: str(item["file_name"]) for item in images}
        return _Coco(
            category_ids=[item["id"] for item in categories],
            categories=[str(item["name"]) for item in categories],
            image_ids=[item["id"] for item in images],
            files=[str(item["file_name"]) for item in images],
            sizes=[_declared_size(item) for item in images],
            annotations=[_annotation(item, names, files) for item in content["annotations"]],
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path}: not readable as COCO JSON ({type(error).__name__}): expected images with "
            "id and file_name, categories with id and name, annotations with image_id, "
            "category_id and bbox = [x, y, width, height]"
        ) from None


def _declared_size(image: Mapping[str, Any]) -> tuple[float, float]:
    width, height = (image.get(side) for side in ("width", "height"))
    return (np.nan, np.nan) if width is None or height is None else (float(width), float(height))


def _annotation(
    item: Mapping[str, Any], names: Mapping[Hashable, str], files: Mapping[Hashable, str]
) -> _Annotation:
    x, y, width, height = (float(side) for side in item["bbox"])
    return _Annotation(
        file=files.get(item["image_id"], ""),
        label=names[item["category_id"]],
        sides=(x, y, width, height),
        crowd=float(item.get("iscrowd") or 0) != 0,
        outlined=bool(item.get("segmentation")),
    )


def _odd_annotations(where: str, annotations: Sequence[_Annotation]) -> list[Finding]:
    """Refuse boxes around crowds, and say that nothing but boxes is read."""
    cells = _numbered(where, len(annotations), "annotation")
    crowds = np.array([each.crowd for each in annotations], dtype=bool)
    findings = cells.finding(
        crowds,
        "crowd",
        "expected a box around one thing, found iscrowd = 1; draw a box around each, or leave "
        "the image out of the file: then it counts as not looked at",
    )
    outlined = sum(each.outlined for each in annotations)
    if outlined:
        message = (
            f"{plural(outlined, 'annotation')} with a segmentation: polygons and masks are not "
            "read, boxes are"
        )
        findings.append(Finding("note", "segmentation-unread", where, message))
    return findings


def _numbered(where: str, count: int, noun: str) -> Cells:
    return Cells.absent(where, np.arange(1, count + 1), noun)


def _repeats(ids: Sequence[Hashable]) -> NDArray[np.bool_]:
    """Say which ids an earlier one equals."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(each, i) != i for i, each in enumerate(ids)], dtype=bool)
