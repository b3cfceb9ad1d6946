"""Files that appear whole or not at all, and, where something rests on them, for good.

A rename swaps a whole file for another, whoever reads meanwhile. It is no promise that either
outlasts a power cut: for that the content goes to the disk before the rename, and the folder's
list of files after it. What is ``durable`` here is on the disk when the call returns.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"


def write_atomically(path: Path, data: str | bytes, *, durable: bool) -> None:
    """Write a file, whole or not at all, over the one that is there; text as UTF-8.

    Raises
    ------
    OSError
        If it cannot be written or brought to the disk; never is half of it there.
    """
    with replacing(path, durable=durable) as partial:
        _create(partial, data.encode() if isinstance(data, str) else data, 0o666)


def write_json(path: Path, data: Any, *, durable: bool) -> None:
    """Write JSON as `write_atomically` does; raises `ValueError` on NaN and infinity."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text, durable=durable)


@contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of ``path`` when the block ends well.

    For writers that want a path. No two calls yield the same one; a kill leaves its file behind
    (`unfinished`).

    Raises
    ------
    OSError
        If the file cannot be moved or brought to the disk.
    """
    partial = _partial(path)
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def create_secret(path: Path, secret: bytes) -> None:
    """Write a file for its owner alone, durably, unless there is one: that one stays.

    Whoever calls reads the file afterwards: it may hold another process' secret.

    Raises
    ------
    OSError
        If it cannot be written, or the file system knows no hard links.
    """
    partial = _partial(path)
    try:
        _create(partial, secret, 0o600)
        sync(partial)
        with suppress(FileExistsError):
            os.link(partial, path)  # unlike a rename it never replaces a file
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder with those above it, durably, unless it is there; ``mode`` is its own.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    new = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(mode, parents=True, exist_ok=True)
    for part in new:
        sync(part.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(path: Path) -> list[Path]:
    """Return what is left of writes to ``path`` that were killed, or are under way."""
    return sorted(path.parent.glob(f".{path.name}.*{_PARTIAL}"))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")


def _create(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
