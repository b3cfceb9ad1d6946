"""SHA-256 of several parts, and of files on this machine.

A process reads a file once as long as it does not change.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path


def sha256_of(parts: Iterable[bytes]) -> str:
    """Return the hex digest of parts; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file's content; raises `OSError` if it cannot be read.

    A file of the same path, size and time of change is not read again: weights of hundreds of
    megabytes are asked for by every part that loads something from beside them. The time is that
    of the inode, since a copy may bring its content's time along.
    """
    status = path.stat()
    return _read(path.absolute(), status.st_size, status.st_ctime_ns)


@cache
def _read(path: Path, _size: int, _ctime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
