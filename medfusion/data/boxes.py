"""Boxes that were drawn on a site's images, as validated arrays.

Legend: N studies, M boxes of a study at most, R rows of a file, I images that it lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from medfusion.data.box_files import BoxRows, ListedImages
from medfusion.data.findings import Cells, Finding
from medfusion.data.images import stored_size

Mask = NDArray[np.bool_]

_VISIBLE = 0.01  # pixels: less of a side is no box to learn or to find
_SLACK = 1.0  # pixels: tools differ in whether the last pixel of a box counts
_MANY = 0.5  # share of the boxes

Sizes = dict[Path, tuple[float, float]]


@dataclass(frozen=True, eq=False, repr=False)
class Boxes:
    """The boxes of N studies, padded to M; shows only counts of itself.

    Attributes
    ----------
    corners
        float32 [N, M, 4]: left, top, right, bottom, as shares of the image's width and height;
        0 where there is no box.
    classes
        int64 [N, M]: 1 for the task's first label and so on; 0 where there is no box.
    """

    corners: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"Boxes({int((self.classes > 0).sum())} boxes, {len(self.classes)} studies)"

    @classmethod
    def none(cls, studies: int, most: int) -> Self:
        """Return what studies without any box have."""
        corners = np.zeros((studies, most, 4), dtype=np.float32)
        return cls(corners, np.zeros((studies, most), dtype=np.int64))

    def take(self, index: NDArray[np.int64]) -> Self:
        """Return the boxes of the studies at ``index``."""
        return type(self)(self.corners[index], self.classes[index])

    def present(self, labels: int) -> NDArray[np.bool_]:
        """Say which study has a box of which label: bool [N, L]."""
        numbers = np.arange(1, labels + 1)
        found: NDArray[np.bool_] = (self.classes[:, :, None] == numbers).any(axis=1)
        return found


def place_boxes(
    drawn: BoxRows,
    *,
    study_ids: Sequence[str] | NDArray[np.str_],
    images: Sequence[Path | None],
    names: Sequence[str],
    most: int,
) -> tuple[Boxes, list[Finding]]:
    """Check boxes against the studies and images that they are for, and scale them.

    Parameters
    ----------
    drawn
        The rows of a file.
    study_ids, images
        Of the N studies.
    names
        The task's labels.
    most
        M.

    Returns
    -------
    The boxes without those that are wrong, and a finding for each kind of problem.
    """
    study_of = {str(name): number for number, name in enumerate(study_ids)}
    known: Sizes = {}
    study = np.array([study_of.get(name, -1) for name in drawn.studies], dtype=np.int64)
    kind = np.array(
        [names.index(name) + 1 if name in names else 0 for name in drawn.labels], dtype=np.int64
    )
    sizes = _sizes(study, images, known)  # [R, 2]
    without_image = np.array([s >= 0 and images[s] is None for s in study], dtype=bool)
    numbers: Mask = np.all(np.isfinite(drawn.xywh), axis=1)
    positive: Mask = numbers & (drawn.xywh[:, 2:] > 0).all(axis=1)
    measured: Mask = positive & np.isfinite(sizes).all(axis=1)
    outside: Mask = measured & _leaves(drawn.xywh, sizes)
    rows = Cells.absent(drawn.where, drawn.rows, "annotation" if drawn.listed else "row")
    named = "the image" if drawn.listed else "the id"
    findings = [
        *rows.finding(
            study < 0,
            "box-of-unknown-study",
            f"expected {named} of a study in the table, found another one",
        ),
        *rows.finding(
            kind == 0,
            "box-of-unknown-label",
            f"expected one of the task's labels ({', '.join(names)}), found something else",
        ),
        *rows.finding(
            ~numbers,
            "box-not-a-number",
            "expected numbers of pixels for x, y, width and height, found blank cells or text",
        ),
        *rows.finding(
            numbers & ~positive,
            "box-without-area",
            "expected a width and a height above 0, found 0 or less",
        ),
        *rows.finding(
            without_image, "box-without-image", "expected a study with an image, found none"
        ),
        *rows.finding(
            outside,
            "box-outside",
            "expected x, y, width and height in pixels of the stored image, found boxes that "
            "leave it",
        ),
        *_swapped(rows, drawn.xywh, sizes, measured, outside),
        *_tiny(rows, drawn.xywh, measured),
    ]
    if drawn.listed is not None:
        where = np.array([study_of.get(name, -1) for name in drawn.listed.studies], dtype=np.int64)
        findings += _listed(drawn.where, drawn.listed, where, _sizes(where, images, known))
    good = np.flatnonzero((study >= 0) & (kind > 0) & measured & ~outside)
    boxes, beyond, copied = _padded(
        study[good], kind[good], _shares(drawn.xywh[good], sizes[good]), len(study_ids), most
    )
    findings += rows.finding(
        np.isin(np.arange(len(study)), good[beyond]),
        "too-many-boxes",
        f"expected at most {most} boxes of a study ([boxes] most of the task), found more",
    )
    findings += rows.finding(
        np.isin(np.arange(len(study)), good[copied]),
        "copied-box",
        "repeat another box of their study; a copy counts twice in every figure",
        severity="warning",
    )
    return boxes, findings


def _sizes(
    study: NDArray[np.int64], images: Sequence[Path | None], known: Sizes
) -> NDArray[np.float64]:
    """Return width and height of each row's image, [R, 2]; NaN where there is none to read.

    They are remembered in ``known``.
    """
    sizes = np.full((len(study), 2), np.nan)
    for row, number in enumerate(study):
        path = images[number] if number >= 0 else None
        if path is None:
            continue
        if path not in known:
            known[path] = stored_size(path) or (np.nan, np.nan)
        sizes[row] = known[path]
    return sizes


def _leaves(xywh: NDArray[np.float64], sizes: NDArray[np.float64]) -> Mask:
    beyond = np.concatenate([xywh[:, :2] + xywh[:, 2:] - sizes, -xywh[:, :2]], axis=1)
    near, far = np.maximum(xywh[:, :2], 0.0), np.minimum(xywh[:, :2] + xywh[:, 2:], sizes)
    unseen = far - near < _VISIBLE  # within the slack, and nothing of it in the image
    leaves: Mask = np.any((beyond > _SLACK) | np.tile(unseen, 2), axis=1)
    return leaves


def _swapped(
    rows: Cells,
    xywh: NDArray[np.float64],
    sizes: NDArray[np.float64],
    measured: Mask,
    outside: Mask,
) -> list[Finding]:
    """Warn of a common slip where many boxes leave their images and would fit without it."""
    if not outside.any() or outside.sum() < _MANY * measured.sum():
        return []
    corners = np.concatenate([xywh[:, :2], xywh[:, 2:] - xywh[:, :2]], axis=1)
    readings: Mapping[str, NDArray[np.float64]] = {
        "width and height swapped": xywh[:, [0, 1, 3, 2]],
        "the right and bottom edges in place of width and height": corners,
    }
    for slip, read in readings.items():
        fits: Mask = outside & ~_leaves(read, sizes) & (read[:, 2:] > 0).all(axis=1)
        if fits.sum() >= _MANY * outside.sum():
            message = f"would fit into their images if the file had {slip}; look at some of them"
            return rows.finding(fits, "box-swapped", message, severity="warning")
    return []


def _tiny(rows: Cells, xywh: NDArray[np.float64], measured: Mask) -> list[Finding]:
    """Warn where most boxes have the sides of a box in shares of its image."""
    tiny: Mask = measured & (xywh[:, 2:] <= 1).all(axis=1)
    if not tiny.any() or tiny.sum() < _MANY * measured.sum():
        return []
    message = (
        "no wider and no higher than a pixel; if the file has shares of the image (0 to 1), turn "
        "x, y, width and height into pixels of the stored image, x and y of the left top corner"
    )
    return rows.finding(tiny, "box-tiny", message, severity="warning")


def _listed(
    where: str, listed: ListedImages, study: NDArray[np.int64], sizes: NDArray[np.float64]
) -> list[Finding]:
    """Compare the images that a file lists with the studies [I] and stored sizes [I, 2]."""
    cells = Cells.absent(where, listed.numbers, "image")
    findings = cells.finding(
        study < 0,
        "image-of-unknown-study",
        "expected a file that a study names as its image, found none; it counts for no study",
        severity="warning",
    )
    both = np.isfinite(sizes).all(axis=1) & np.isfinite(listed.sizes).all(axis=1)
    unlike: Mask = both & (sizes != listed.sizes).any(axis=1)
    if unlike.any():
        first = int(np.flatnonzero(unlike)[0])
        stored, declared = (
            f"{size[0]:g} x {size[1]:g}" for size in (sizes[first], listed.sizes[first])
        )
        message = (
            f"expected the width and height of the stored image, {stored} of image "
            f"{listed.numbers[first]}, found {declared}; store the images that were drawn on, or "
            "scale the boxes to the stored ones and correct width and height"
        )
        findings += cells.finding(unlike, "image-size", message)
    return findings


def _shares(xywh: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return corners as shares of width and height, float32 [R, 4], within the image."""
    near, far = xywh[:, :2] / sizes, (xywh[:, :2] + xywh[:, 2:]) / sizes
    within = np.clip(np.concatenate([near, far], axis=1), 0.0, 1.0)
    shares: NDArray[np.float32] = within.astype(np.float32)
    return shares


def _padded(
    study: NDArray[np.int64],
    kind: NDArray[np.int64],
    corners: NDArray[np.float32],
    studies: int,
    most: int,
) -> tuple[Boxes, NDArray[np.bool_], NDArray[np.bool_]]:
    """Place rows by study, in an order that does not depend on the file's.

    Returns the boxes, which rows found no place, and which repeat another one.
    """
    boxes = Boxes.none(studies, most)
    beyond, copied = np.zeros((2, len(study)), dtype=bool)
    order = np.lexsort((*corners.T[::-1], kind, study))
    used, last = np.zeros(studies, dtype=np.int64), None
    for row in order:
        this = (study[row], kind[row], *corners[row])
        copied[row], last = this == last, this
        place = used[study[row]]
        used[study[row]] += 1
        if place == most:
            used[study[row]] = most
            beyond[row] = True
            continue
        boxes.corners[study[row], place] = corners[row]
        boxes.classes[study[row], place] = kind[row]
    return boxes, beyond, copied
