"""One user of a folder at a time, and one writer of a file."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfusion.errors import MedFusionError


@contextmanager
def held_alone(folder: Path, otherwise: MedFusionError) -> Iterator[None]:
    """Hold a folder; the operating system lets go if the process dies.

    Raises
    ------
    MedFusionError
        ``otherwise``, if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise otherwise from None
    else:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file for a moment, waiting for whoever else does: a Node, or a command.

    Raises
    ------
    OSError
        If the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
