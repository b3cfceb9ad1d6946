"""What worker processes share: a look for a GPU that starts none, and an end with the parent."""

import os
import threading
import time
from pathlib import Path

_ORPHAN_SECONDS = 1.0


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, without starting CUDA in this process."""
    return Path("/dev/nvidiactl").exists()


def end_with_parent(parent: int) -> None:
    """End this process, from a thread, when process ``parent`` is gone (it may be killed)."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)
