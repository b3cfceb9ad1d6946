"""Volumes: from NIfTI, numpy or DICOM files to voxels of the task's size.

Nothing is learned from other patients: intensities are brought to eight bits by the task's public
window, or by the volume's own percentiles.

Shapes: X to the patient's right, Y to the front, Z upwards (RAS).
"""

import gzip
import zipfile
import zlib
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

_DAMAGED = (
    *(OSError, ValueError, TypeError, EOFError, LookupError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)


def decode_volume(path: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Read a volume as uint8 [1, X, Y, Z] of the size in ``spec``.

    - NIfTI files are turned to RAS by their affine, and bring their spacing.
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
    if voxels.dtype != np.uint8 or spec.window is not None:
        voxels = to_255(voxels.astype(np.float32), spec.window)
    values = voxels.astype(np.float32)
    if spec.spacing is None:
        values = resample(values, spec.size)
    else:
        pairs = zip(values.shape, spacing, strict=True)
        sides = tuple(max(1, round(side * mm / spec.spacing)) for side, mm in pairs)
        values = _centred(resample(values, sides), spec.size)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)[None]


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
    try:
        image = nibabel.as_closest_canonical(_parsed(data))  # type: ignore[no-untyped-call]
        shape = [side for side in image.shape[3:] if side != 1]
        if shape or np.prod(image.shape, dtype=np.float64) > _MOST_VOXELS:
            raise DataError("a volume has more than three dimensions, or too many voxels")
        voxels = np.asanyarray(image.dataobj)
        spacing = tuple(float(mm) for mm in image.header.get_zooms()[:3])
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.orientations.OrientationError,
    ):
        raise ValueError("not NIfTI") from None
    return voxels.reshape(voxels.shape[:3]), spacing


def _parsed(data: bytes) -> Any:
    """Return the image of nibabel's that a file's content is, of either version of NIfTI."""
    import nibabel

    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        if kind.header_class.may_contain_header(data):  # type: ignore[no-untyped-call]
            return kind.from_bytes(data)
    raise ValueError("not NIfTI")


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
    if (
        spacing.shape != (3,)
        or spacing.dtype.kind not in "uif"
        or not (np.isfinite(spacing) & (spacing > 0)).all()
    ):
        raise DataError("a volume's spacing is not three lengths in mm")
    return content[key], tuple(float(mm) for mm in spacing)
