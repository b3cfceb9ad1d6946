"""What an image's cell may name: a file, or a folder of files.

A folder stands for one image (it then holds one file) or for a volume whose slices it holds.
"""

import hashlib
from pathlib import Path

from medfusion.errors import DataError

_PREAMBLE, _MAGIC = 128, b"DICM"
_SUFFIXES = (".dcm", ".dicom")
_INDEX = "DICOMDIR"  # of a medium: it lists images and is none


def is_dicom(path: Path) -> bool:
    """Whether a file is of DICOM, by its first bytes or, where they are not there, by its name."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def image_files(path: Path) -> list[Path]:
    """Return the file itself, or those of a folder, by name; hidden ones do not count.

    Raises
    ------
    DataError
        If a folder cannot be read, is empty, or holds other folders or links, which may lead
        anywhere; the message leaves out the path.
    """
    if not path.is_dir():
        return [path]
    try:
        inside = sorted(p for p in path.iterdir() if p.name[0] != "." and p.name != _INDEX)
    except OSError as error:
        raise DataError(f"an image's folder cannot be read ({error.strerror})") from None
    if not inside:
        raise DataError("an image's folder is empty")
    if any(file.is_symlink() or not file.is_file() for file in inside):
        raise DataError("an image's folder holds other folders or links: expected files only")
    return inside


def single_file(path: Path) -> Path:
    """Return the one file that a cell names, itself or its folder; raises `DataError`."""
    files = image_files(path)
    if len(files) > 1:
        raise DataError(
            f"a folder holds {len(files):,} files where one image is expected; name one of them "
            "(a series of slices is an image for tasks with dims = 3)"
        )
    return files[0]


def content_digest(path: Path) -> str:
    """SHA-256 of an image's content, whatever its files are called; empty if unreadable."""
    try:
        digests = [_file_digest(file) for file in image_files(path)]
    except (OSError, DataError):
        return ""
    if not path.is_dir():
        return digests[0]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
