"""What importers of boxes share whose images are DICOM files, or pictures made from these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion.data.cohorts.source_table import task_sections
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.images import stored_size

Box = tuple[str, float, float, float, float]
"""Label, x, y, width and height in pixels."""

_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")  # of several the first counts
_IMAGE_SIZE = 256


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


def image_only_cohort(
    name: str, labels: Sequence[str], most: int, studies: Sequence[Study], notices: Sequence[str]
) -> Cohort:
    """Return a cohort of detection, whose tables bring no clinical data to be fused."""
    sections: Mapping[str, Any] = task_sections(
        name, features={}, labels=labels, image_size=_IMAGE_SIZE
    )
    task = {**sections["task"], "kind": "detection"}
    return Cohort(
        task={**sections, "task": task, "boxes": {"most": most}},
        studies=studies,
        notices=notices,
        model="mdf_net",
        rounds=40,
        batch_size=8,
        learning_rate=1e-3,
        training={"schedule": "cosine", "augmentation": "light"},
        sections={
            "model": {"fusion_3d": "none", "fusion_1d": False},
            "selection": {"method": "none"},
        },
    )
