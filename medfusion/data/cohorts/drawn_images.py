"""What importers of boxes share whose images are DICOM files, or pictures made from these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion.data.cohorts.source_table import (
    Cells,
    RangedFeature,
    feature_cells,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.columns import number_of
from medfusion.data.dicom_tags import tag_cells
from medfusion.data.image_files import is_dicom
from medfusion.data.images import stored_size
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, NumericFeature

Box = tuple[str, float, float, float, float]
"""Label, x, y, width and height in pixels."""

_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")  # of several the first counts
_IMAGE_SIZE = 256
_FEATURES: Mapping[str, tuple[str, RangedFeature]] = {  # by name: DICOM keyword and public range
    "age": ("PatientAge", NumericFeature(kind="numeric", low=0, high=120, unit="year")),
    "sex": ("PatientSex", CategoricalFeature(kind="categorical", values=("F", "M"))),
    "view": ("ViewPosition", CategoricalFeature(kind="categorical", values=("PA", "AP"))),
}


def images_by_name(src: Path) -> dict[str, Path]:
    """Return name without suffix -> file, of all images below ``src``.

    Boxes are drawn on DICOM files: where there is one and a picture of the same name, it counts.
    """
    found: dict[str, Path] = {}
    files = [path for path in sorted(src.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    for path in sorted(files, key=lambda path: _SUFFIXES.index(path.suffix.lower())):
        found.setdefault(path.stem, path)
    return found


def in_pixels_of(image: Path, boxes: Sequence[Box], drawn_on: tuple[int, int]) -> list[Box]:
    """Return boxes that were drawn on an image of width and height ``drawn_on``, as ``image`` has.

    A picture is often smaller than the DICOM file that it was made from. Where the size of a file
    cannot be read, boxes stay as they are.
    """
    width, height = stored_size(image) or drawn_on
    across, down = width / drawn_on[0], height / drawn_on[1]
    return [(label, x * across, y * down, w * across, h * down) for label, x, y, w, h in boxes]


def header_features(images: Sequence[Path], names: Sequence[str]) -> dict[str, RangedFeature]:
    """Return the features that DICOM headers may tell; none where no image is a DICOM file."""
    told = any(is_dicom(image) for image in images)
    return {name: _FEATURES[name][1] for name in names} if told else {}


def header_cells(
    table: Table, images: Sequence[Path], features: Mapping[str, RangedFeature], notices: list[str]
) -> dict[str, Cells]:
    """Return N cells of each feature out of the images' headers, blank in pictures."""
    found: dict[str, Cells] = {}
    for name, feature in features.items():
        keyword = _FEATURES[name][0]
        cells = tag_cells(images, keyword)
        if isinstance(feature, NumericFeature):
            cells = [cell if number_of(cell, ".") is not None else "" for cell in cells]
        found[name] = feature_cells(table, keyword, feature, notices, cells=cells)
    return found


def detection_cohort(
    name: str,
    labels: Sequence[str],
    most: int,
    studies: Sequence[Study],
    notices: Sequence[str],
    features: Mapping[str, RangedFeature],
) -> Cohort:
    """Return a cohort of detection; without features there is nothing to fuse or to select."""
    sections: Mapping[str, Any] = task_sections(
        name, features=features, labels=labels, image_size=_IMAGE_SIZE
    )
    task = {**sections["task"], "kind": "detection"}
    without: Mapping[str, Mapping[str, Any]] = {
        "model": {"fusion_3d": "none", "fusion_1d": False},
        "selection": {"method": "none"},
    }
    return Cohort(
        task={**sections, "task": task, "boxes": {"most": most}},
        studies=studies,
        notices=notices,
        model="mdf_net",
        rounds=40,
        batch_size=8,
        learning_rate=1e-3,
        training={"schedule": "cosine", "augmentation": "light"},
        sections={} if features else without,
    )
