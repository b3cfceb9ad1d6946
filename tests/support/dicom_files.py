"""DICOM files as tests need them."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

SERIES = "1.2.826.0.1.3680043.8.498.1"


def shipped(name: str) -> Path:
    """Return a file that pydicom's wheel holds; never from the network."""
    return Path(pydicom.__file__).parent / "data" / "test_files" / name


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """Write one grey or RGB frame, or several, uncompressed; a tag of None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", ComputedRadiographyImageStorage)
    meta.MediaStorageSOPInstanceUID = f"{SERIES}.{abs(hash(path.name))}"
    colour = pixels.shape[-1] == 3 and pixels.dtype == np.uint8 and pixels.ndim > 2
    frames = pixels.ndim - colour > 2
    rows, columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    bits = 8 * pixels.dtype.itemsize
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    about = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if colour else 1,
        "PlanarConfiguration": 0 if colour else None,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "NumberOfFrames": len(pixels) if frames else None,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": tags.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for keyword, value in (about | tags).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path
