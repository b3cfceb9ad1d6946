"""Volumes: from NIfTI, numpy or DICOM files to voxels of the task's size.

Nothing is learned from other patients: intensities are brought to eight bits by the task's public
window, or by the volume's own percentiles.

Shapes: X to the patient's right, Y to the front, Z upwards (RAS).
"""

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.image_files import image_files, is_dicom, single_file
from medfusion.data.intensities import Floats, to_255
from medfusion.data.task import ImageSpec
from medfusion.errors import DataError

NIFTI = (".nii", ".nii.gz")
ARRAYS = (".npz", ".npy")
_KEY, _SPACING_KEY = "volume", "spacing"
_MOST_VOXELS = 2**28  # a whole-body CT has some 1.5e8
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's codes for metre, mm and micron
_UNIT_CODES = 8  # beyond are those of time
_HEADER_BYTES = 540  # of version 2, the longer one

_DAMAGED = (
    *(OSError, ValueError, TypeError, EOFError, LookupError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)


def decode_volume(path: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Read a volume as uint8 [1, X, Y, Z] of the size in ``spec``.

    - NIfTI files are turned to RAS by their affine, and bring their spacing (``pixdim``) in the
      unit that they name, or mm.
    - A ``.npy`` file holds one array, an ``.npz`` file one array, or ``volume`` and ``spacing``
      (three numbers, in mm; 1 where it is not there). Their axes are taken to be RAS.
    - DICOM: a folder of slices, or one file of many frames, turned to RAS, in the modality's unit
      (see `medfusion.data.dicom_volume`). Windows in the files are not heeded.
    - With ``spec.spacing`` the volume is resampled to it, and cut or filled up with 0 around its
      centre; without, the whole of it is resampled to the size.
    - Eight-bit volumes without ``spec.window`` keep their values.

    Raises
    ------
    DataError
        If it cannot be read, or is no volume; the message leaves out the path.
    """
    voxels, spacing = _read(path)
    if voxels.dtype.kind not in "uifb":
        raise DataError("a volume's voxels are not numbers")
    if voxels.ndim != 3 or 0 in voxels.shape or voxels.size > _MOST_VOXELS:
        raise DataError("a volume does not have three dimensions of a sensible size")
    sides = spec.size if spec.spacing is None else _sides(voxels.shape, spacing, spec.spacing)
    if voxels.dtype != np.uint8 or spec.window is not None:
        voxels = to_255(voxels.astype(np.float32), spec.window)
    values = _centred(resample(voxels.astype(np.float32), sides), spec.size)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)[None]


def lacks_orientation(path: Path) -> bool:
    """Whether a file is NIfTI that does not tell which of its sides are right, front and up.

    Neither qform nor sform has a code: its axes are then taken to lead to the left, the front and
    upwards, as in Analyze files, which is a guess. What cannot be read lacks nothing.
    """
    try:
        path = single_file(path)
        if is_dicom(path) or not path.name.lower().endswith(NIFTI):
            return False
        packed = path.name.lower().endswith(".gz")
        with gzip.open(path) if packed else path.open("rb") as file:
            _, header = _header(file.read(_HEADER_BYTES))
    except (DataError, *_DAMAGED):
        return False
    return not header["qform_code"] and not header["sform_code"]


def _sides(shape: Sequence[int], spacing: Sequence[float], wanted: float) -> tuple[int, ...]:
    """Return the sides that a volume has at the wanted spacing; raises `DataError` if absurd."""
    pairs = zip(shape, spacing, strict=True)
    sides = tuple(max(1, round(side * mm / wanted)) for side, mm in pairs)
    # One axis after the other is resampled: some may grow before others shrink.
    most = math.prod(max(pair) for pair in zip(shape, sides, strict=True))
    if most <= _MOST_VOXELS and (max(sides) > 1 or max(shape) == 1):
        return sides
    found = "more" if most > _MOST_VOXELS else "one"
    raise DataError(
        f"expected at most {_MOST_VOXELS:,} voxels, and more than one, in a volume at the task's "
        f"spacing, found {found}: is its spacing in the unit that its file tells (of NIfTI, pixdim "
        "and xyzt_units)? mend the file, blank the cell, or agree on another spacing"
    )


def resample(values: Floats, size: tuple[int, ...]) -> Floats:
    """Return values resampled along each axis to ``size``, by triangles as wide as a new voxel.

    Where voxels grow, this averages over what they cover, so that fine textures do not turn into
    coarse ones; where they shrink it is linear.
    """
    for axis, side in enumerate(size):
        if values.shape[axis] != side:
            weights = _triangles(values.shape[axis], side)
            values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values


def _triangles(old: int, new: int) -> Floats:
    """Return weights [new, old], each row of sum 1."""
    step = old / new
    centres = (np.arange(new) + 0.5) * step - 0.5
    distance = np.abs(np.arange(old) - centres[:, None]) / max(step, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    found: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def _centred(values: Floats, size: tuple[int, ...]) -> Floats:
    """Cut values, or fill them up with 0, around their centre."""
    cut = []
    for old, new in zip(values.shape, size, strict=True):
        start = max(0, (old - new) // 2)
        cut.append(slice(start, start + min(old, new)))
    inner = values[tuple(cut)]
    lacking = [new - old for old, new in zip(inner.shape, size, strict=True)]
    return np.pad(inner, [(n // 2, n - n // 2) for n in lacking])


def _read(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Return the voxels and their spacing in mm."""
    files = image_files(path)
    if is_dicom(files[0]):
        from medfusion.data.dicom_volume import read_dicom_volume

        return read_dicom_volume(files, _MOST_VOXELS)
    path = single_file(path)
    name = path.name.lower()
    try:
        if name.endswith(NIFTI):
            return _read_nifti(path)
        if name.endswith(ARRAYS):
            return _read_array(path)
    except _DAMAGED as error:
        raise DataError(
            f"a volume cannot be read (truncated, damaged or of another format: "
            f"{type(error).__name__})"
        ) from None
    raise DataError(f"a volume is not one of {', '.join((*NIFTI, *ARRAYS))} or DICOM")


def _read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    import nibabel  # takes a moment, and only volumes need it

    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        data = gzip.decompress(data)  # to its checksum, before which nibabel stops
    kind, header = _header(data)
    unit = _MM.get(int(header["xyzt_units"]) % _UNIT_CODES, 1.0)  # unknown: mm
    spacing = _lengths(unit * header["pixdim"][1:4])
    try:
        image = kind.from_bytes(data)
        shape = [side for side in image.shape[3:] if side != 1]
        if shape or np.prod(image.shape, dtype=np.float64) > _MOST_VOXELS:
            raise DataError("a volume has more than three dimensions, or too many voxels")
        turned = nibabel.io_orientation(image.affine)  # type: ignore[no-untyped-call]
        voxels = np.asanyarray(image.as_reoriented(turned).dataobj)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.orientations.OrientationError,
    ):
        raise ValueError("not NIfTI") from None
    along = np.argsort(turned[:, 0])  # which of the file's axes each of the patient's is
    return voxels.reshape(voxels.shape[:3]), tuple(spacing[axis] for axis in along)


def _header(data: bytes) -> tuple[Any, Any]:
    """Return nibabel's kind of image for a file's content, of either version, and its header.

    The header is as it was written: nibabel would mend lengths of 0 or below.
    """
    import nibabel

    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        header = kind.header_class
        if header.may_contain_header(data):  # type: ignore[no-untyped-call]
            return kind, header(data[: header.sizeof_hdr], check=False)  # type: ignore[no-untyped-call]
    raise ValueError("not NIfTI")


def _lengths(spacing: NDArray[Any]) -> tuple[float, ...]:
    """Return a spacing that a file tells as it is; raises `DataError` if it is none."""
    if (
        spacing.shape != (3,)
        or spacing.dtype.kind not in "uif"
        or not (np.isfinite(spacing) & (spacing > 0)).all()
    ):
        raise DataError(
            "expected a spacing of three lengths above 0, found another; write the file anew from "
            "the scanner's, or mend the spacing (of NIfTI, pixdim)"
        )
    return tuple(float(mm) for mm in spacing)


def _read_array(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    with path.open("rb") as file:  # numpy leaves a damaged one open
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content, (1.0, 1.0, 1.0)
        with content:
            return _read_archive(content)


def _read_archive(content: Any) -> tuple[NDArray[Any], tuple[float, ...]]:
    key = _KEY if _KEY in content.files else content.files[0]
    if key != _KEY and len(content.files) > 1:
        raise DataError(f"a volume's file holds several arrays, none called {_KEY!r}")
    spacing = content[_SPACING_KEY] if _SPACING_KEY in content.files else np.ones(3)
    return content[key], _lengths(spacing)
