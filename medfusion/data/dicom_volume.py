"""Volumes of DICOM: a series of slices, or one file of many frames.

Shapes: H rows, W columns, S slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.dicom import frames_of, modality_values, of_frame, read_image, reading
from medfusion.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_SAME_DIRECTION = 1e-3  # of a unit vector
_UNEVEN = 0.05  # of the distance between slices, or
_SLACK = 0.02  # mm, as positions are written with few digits
_ASIDE = 0.1  # of a pixel: a slice that lies aside belongs to a sheared stack

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class _Slice:
    """One slice: its pixels [H, W] and where they lie (mm, to the left, the back, upwards)."""

    pixels: NDArray[Any]
    position: Floats
    along_row: Floats
    along_column: Floats
    spacing: tuple[float, float]
    series: str


def read_dicom_volume(
    files: Sequence[Path], most_voxels: int
) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Return voxels, turned to RAS, and their spacing in mm.

    Slices are sorted by their positions along the normal of the first one's plane.

    Raises
    ------
    DataError
        If files are no grey DICOM images, of several series, planes or sizes; if positions or
        spacings are not told, are not evenly spaced (a slice is missing, or there are several of
        a place) or form a sheared stack; or if there is only one slice.
    """
    with reading():
        slices = _slices(files, most_voxels)
        first = slices[0]
        _check_alike(slices)
        normal = np.cross(first.along_row, first.along_column)
        slices = sorted(slices, key=lambda each: float(each.position @ normal))
        step = _step(slices, normal)
        voxels = np.stack([each.pixels for each in slices], axis=2)
    return _canonical(voxels, slices[0], normal * step)


def _slices(files: Sequence[Path], most_voxels: int) -> list[_Slice]:
    slices: list[_Slice] = []
    for file in files:
        dataset = read_image(file)
        if dataset.PhotometricInterpretation != "MONOCHROME2":
            raise DataError("a volume's DICOM file is not grey (MONOCHROME2)")
        frames = frames_of(dataset)
        if frames > 1 and len(files) > 1:
            raise DataError(
                "a folder holds several DICOM files of which one has several frames; expected "
                "slices, or one file of many frames"
            )
        sides = int(dataset.Rows) * int(dataset.Columns)
        if sides * max(frames, len(files)) > most_voxels:
            raise DataError("a volume has too many voxels")
        slices += [_slice(dataset, number, frames) for number in range(frames)]
    if len(slices) < 2:
        raise DataError("a volume has one slice; expected a folder of slices, or many frames")
    return slices


def _slice(dataset: "Dataset", number: int, frames: int) -> _Slice:
    frame = of_frame(dataset, number)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if frame.get(keyword) is None:
            raise DataError(f"a volume's DICOM file does not tell {keyword} of its slices")
    if frames > 1 and not frame.get("PerFrameFunctionalGroupsSequence"):
        raise DataError("a DICOM file of many frames does not tell the position of each")
    direction = np.array(frame.ImageOrientationPatient, dtype=np.float64)
    position = np.array(frame.ImagePositionPatient, dtype=np.float64)
    down, right = (float(mm) for mm in frame.PixelSpacing)
    if not (min(down, right) > 0 and np.isfinite([*direction, *position, down, right]).all()):
        raise DataError("a volume's DICOM file has no sensible spacing, orientation or position")
    return _Slice(
        modality_values(frame, number if frames > 1 else None),
        position,
        direction[:3],
        direction[3:],
        (down, right),
        str(frame.get("SeriesInstanceUID", "")),
    )


def _check_alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for each in slices:
        if each.series != first.series:
            raise DataError("a folder holds slices of several series; expected one series")
        turned = np.abs(each.along_row - first.along_row).max() > _SAME_DIRECTION
        if turned or np.abs(each.along_column - first.along_column).max() > _SAME_DIRECTION:
            raise DataError("a series has slices of several orientations (a scout among them?)")
        if each.pixels.shape != first.pixels.shape or each.spacing != first.spacing:
            raise DataError("a series has slices of several sizes or spacings")


def _step(slices: Sequence[_Slice], normal: Floats) -> float:
    """Return the distance between slices in mm; raises `DataError` unless it is one."""
    positions = np.stack([each.position for each in slices])
    heights = positions @ normal
    steps = np.diff(heights)
    step = float(np.median(steps))
    if steps.min() < _SLACK:
        raise DataError("a series has several slices at one place (phases or echoes?)")
    if np.abs(steps - step).max() > max(_UNEVEN * step, _SLACK):
        raise DataError("a series' slices are not evenly spaced: is a slice missing?")
    aside = positions - positions[0] - np.outer(heights - heights[0], normal)
    if np.abs(aside).max() > _ASIDE * min(slices[0].spacing):
        raise DataError("a series' slices are shifted against one another (a tilted gantry)")
    return float(heights[-1] - heights[0]) / len(steps)


def _canonical(
    voxels: NDArray[Any], first: _Slice, step: Floats
) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Turn voxels [H, W, S] to RAS. PS3.3 C.7.6.2.1.1 gives the axes, to the left and the back."""
    import nibabel

    down, right = first.spacing
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first.along_column * down, first.along_row * right, step], axis=1)
    affine[:3, 3] = first.position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))  # type: ignore[no-untyped-call]
    spacing = tuple(float(mm) for mm in nibabel.affines.voxel_sizes(image.affine))  # type: ignore[no-untyped-call]
    return np.asanyarray(image.dataobj), spacing
