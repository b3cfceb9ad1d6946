"""One app at a time works on a run, and one that was killed is found out at once.

Flower notices that an app was killed when its heartbeat has been missing for a minute. The lock
here is let go by the operating system the moment the process dies; a file beside it says that the
app did not end by itself.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfusion.atomic_files import make_folder, write_json

_LOCK, _AT_WORK = "app.lock", "app.json"


@contextmanager
def working_on(folder: Path, flower_run: int) -> Iterator[None]:
    """Hold a run folder, once an app that works on it has ended.

    Two apps can be there for a moment: Flower may take one for dead that was only cut off, and
    ends it when it is heard of again.
    """
    make_folder(folder)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write_json(folder / _AT_WORK, {"schema": 1, "flower_run": flower_run}, durable=False)
        try:
            yield
        finally:
            (folder / _AT_WORK).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def was_killed(folder: Path, flower_run: int) -> bool:
    """Whether the app of this run began to work and is gone without having ended."""
    try:
        told = json.loads((folder / _AT_WORK).read_text(encoding="utf-8"))["flower_run"]
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return told == flower_run and (folder / _AT_WORK).exists()
