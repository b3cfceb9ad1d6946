"""One user of a state folder at a time: a Node that is served, or a simulation."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfusion.errors import FederationError


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold the state folder of a site; the operating system lets go if the process dies.

    Raises
    ------
    FederationError
        If another process holds it.
    """
    descriptor = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FederationError(
            f"{state}: another Node serves this site, or a simulation uses its state; stop it first"
        ) from None
    else:
        yield
    finally:
        os.close(descriptor)
