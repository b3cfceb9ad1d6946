"""One user of a state folder at a time, and one writer of a file in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from medfusion.errors import FederationError
from medfusion.folder_lock import held_alone


def alone(state: Path) -> AbstractContextManager[None]:
    """Hold the state folder of a site; the operating system lets go if the process dies.

    Raises
    ------
    FederationError
        If another process holds it.
    """
    return held_alone(
        state,
        FederationError(
            f"{state}: another Node serves this site, or a simulation uses its state; stop it first"
        ),
    )


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
