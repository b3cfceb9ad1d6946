"""DICOM files: single tags, and a picture as a radiologist sees it.

Through pydicom, whose warnings and log may quote a patient's values: they are kept silent. Which
compressed files can be read depends on the packages that pydicom finds (Pillow reads JPEG and
JPEG 2000, pydicom itself RLE).
"""

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medfusion.data.intensities import to_255
from medfusion.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, AssertionError),
    *(NotImplementedError, RuntimeError, ArithmeticError, MemoryError, struct.error, zlib.error),
)
GREY = ("MONOCHROME1", "MONOCHROME2")
_MOST_PIXELS = 2**27  # the largest radiographs have some 5e7
_FAR = 1e30  # beyond any window


def read_tags(path: Path, keywords: Sequence[str]) -> dict[str, str]:
    """Return the text of those tags that a file's header fills, by keyword.

    Several values of one tag are parted by a backslash, as DICOM does.

    Raises
    ------
    DataError
        If it is no DICOM file or damaged.
    """
    with reading():
        header = read_file(path, stop_before_pixels=True, specific_tags=list(keywords))
        texts = {keyword: _text(header.get(keyword)) for keyword in keywords}
    return {keyword: text for keyword, text in texts.items() if text}


def read_picture(path: Path) -> Image.Image:
    """Decode the one frame of a file: an image of mode L or RGB.

    Grey values go through the modality transform (rescale or table), then through the first VOI
    table or window of the file. Without one, eight-bit values without a transform stay as they
    are, and others are brought from the range between their own percentiles (0.5 and 99.5, padding
    left out) to 0 to 255. MONOCHROME1 is inverted. Padding is black, whatever its value. YBR and
    palettes become RGB.

    Raises
    ------
    DataError
        If it is no image, is damaged, encrypted or of several frames, or is compressed in a way
        that no installed package decodes. The message tells nothing from the header but that.
    """
    with reading():
        dataset = read_image(path)
        if frames_of(dataset) > 1:
            raise DataError(
                f"a DICOM file holds {frames_of(dataset):,} frames where one image is expected; "
                "export the frame that counts (volumes are for tasks with dims = 3)"
            )
        of_frame(dataset, 0)
        kind = dataset.PhotometricInterpretation
        picture = _grey(dataset) if kind in GREY else _colour(dataset)
    return Image.fromarray(picture)


@contextmanager
def reading() -> Iterator[None]:
    """Turn what pydicom raises into a `DataError`, and keep its warnings to ourselves."""
    from pydicom.errors import BytesLengthException

    with _silence:
        try:
            yield
        except (*_DAMAGED, BytesLengthException) as error:
            raise DataError(
                "a DICOM file cannot be read (truncated, damaged or of an unusual form: "
                f"{type(error).__name__})"
            ) from None


def read_image(path: Path) -> "Dataset":
    """Return a dataset whose pixels can be decoded; only within `reading`; raises `DataError`."""
    from pydicom.pixels.decoders.base import get_decoder

    dataset = read_file(path)
    if "PixelData" not in dataset or "PhotometricInterpretation" not in dataset:
        name = dataset.get("SOPClassUID", None)
        kind = name.name if name is not None and name.name != name else "of an unknown kind"
        raise DataError(f"a DICOM file holds no image ({kind})")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        missing = not get_decoder(syntax).is_available
    except NotImplementedError:
        raise DataError(
            f"a DICOM file is compressed as {syntax.name}, which pydicom does not decode; export "
            "it uncompressed"
        ) from None
    if int(dataset.Rows) * int(dataset.Columns) > _MOST_PIXELS:
        raise DataError("a DICOM file has too many pixels to be an image of a patient")
    if missing:
        raise DataError(
            f"a DICOM file is compressed as {syntax.name}, which needs a package that is not "
            f"here: `pip install {_package(syntax)}`, or export it uncompressed"
        )
    return dataset


def frames_of(dataset: "Dataset") -> int:
    """How many frames an image has."""
    return int(dataset.get("NumberOfFrames") or 1)


def of_frame(dataset: "Dataset", number: int) -> "Dataset":
    """Bring what an enhanced image says of one frame to where other images say it of all.

    The frame's groups of attributes (position, spacing, rescale, window) stand in sequences.
    """
    for groups, place in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", number),
    ):
        if dataset.get(groups):
            for group in dataset[groups].value[place]:
                if group.VR == "SQ" and group.value:
                    dataset.update(group.value[0])
    return dataset


def modality_values(dataset: "Dataset", frame: int | None = None) -> NDArray[Any]:
    """Return pixels [H, W] in the modality's unit (of a CT: Hounsfield), as stored without one.

    ``frame`` is which of several to take.
    """
    from pydicom.pixels.processing import apply_modality_lut

    stored = _stored(dataset) if frame is None else _stored(dataset)[frame]
    if dataset.get("ModalityLUTSequence"):
        values: NDArray[Any] = apply_modality_lut(stored, dataset)
        return values
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    slope, intercept = 1 if slope is None else slope, intercept or 0  # a tag may be empty
    return stored if (slope, intercept) == (1, 0) else stored * float(slope) + float(intercept)


def _text(value: Any) -> str:
    from pydicom.multival import MultiValue

    if value is None:
        return ""
    values = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(each).strip() for each in values)


def _stored(dataset: "Dataset") -> NDArray[Any]:
    """Decode the pixels, which pydicom then keeps."""
    try:
        pixels: NDArray[Any] = dataset.pixel_array
    except RuntimeError:  # of every plugin
        syntax = dataset.file_meta.TransferSyntaxUID
        raise DataError(
            f"a DICOM file compressed as {syntax.name} is damaged, or of a form that the packages "
            f"here do not decode: `pip install {_package(syntax)}`, or export it uncompressed"
        ) from None
    return pixels


def read_file(path: Path, **options: Any) -> "Dataset":
    """Call pydicom's ``dcmread``; only within `reading`, also what is then asked of the result.

    Raises
    ------
    DataError
        If it is no DICOM file.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        return dcmread(path, **options)
    except InvalidDicomError:
        raise DataError(
            "a file is not DICOM as it is stored in files (its preamble is missing: encrypted, or "
            "of another format)"
        ) from None


def _grey(dataset: "Dataset") -> NDArray[np.uint8]:
    values, padding = modality_values(dataset), _padding(dataset)
    shown = _windowed(values, dataset)
    if shown is None and values.dtype == np.uint8:
        shown = values * np.float32(255 / (2**dataset.BitsStored - 1))
    if shown is None:
        shown = to_255(np.where(padding, np.float32(np.nan), values.astype(np.float32)), None)
    if not np.isfinite(shown).all():
        raise DataError("a DICOM file's rescale or window has no width")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255.0 - shown
    return np.where(padding, 0, np.clip(np.rint(shown), 0, 255)).astype(np.uint8)


def _windowed(values: NDArray[Any], dataset: "Dataset") -> NDArray[Any] | None:
    """Apply the first VOI table or window, if there is one: 0 to 255."""
    from pydicom.pixels.processing import apply_voi_lut, apply_windowing

    if dataset.get("VOILUTSequence"):
        highest = 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shown: NDArray[Any] = apply_voi_lut(values, dataset) * (255.0 / highest)
        return shown
    if dataset.get("WindowWidth") is None or dataset.get("WindowCenter") is None:
        return None
    black, white = apply_windowing(np.array([-_FAR, _FAR]), dataset)
    shown = (apply_windowing(values, dataset) - black) * (255.0 / (white - black))
    return shown


def _padding(dataset: "Dataset") -> NDArray[np.bool_]:
    """Return which pixels [H, W] only fill the frame."""
    stored, padding = _stored(dataset), dataset.get("PixelPaddingValue")
    if padding is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    limit = dataset.get("PixelPaddingRangeLimit", padding)
    found: NDArray[np.bool_] = (stored >= min(padding, limit)) & (stored <= max(padding, limit))
    return found


def _colour(dataset: "Dataset") -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    pixels = _stored(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
        highest = float(np.iinfo(pixels.dtype).max)
    else:
        highest = 2.0**dataset.BitsStored - 1
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError("a DICOM file is neither grey nor of three colours")
    return np.clip(np.rint(pixels * (255.0 / highest)), 0, 255).astype(np.uint8)


def _package(syntax: Any) -> str:
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

    if syntax in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    codec = "openjpeg" if syntax in JPEG2000TransferSyntaxes else "libjpeg"
    return f"pylibjpeg pylibjpeg-{codec}"


class _Silence:
    """Ignores warnings while anybody is inside: ``catch_warnings`` by itself suits one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filter = warnings.catch_warnings()
                self._filter.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filter.__exit__(None, None, None)


_silence = _Silence()
