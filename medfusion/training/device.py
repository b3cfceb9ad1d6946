"""Where a site computes, and how much at once."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

from medfusion.errors import ConfigError, FederationError

T = TypeVar("T")


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes a GPU where there is one.

    Raises
    ------
    ConfigError
        If a GPU is named that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"[compute] device = {name!r}: found {torch.cuda.device_count()} GPUs on this "
            "machine; use 'auto' or 'cpu'"
        )
    return device


def as_fits(
    compute: Callable[[int], T],
    physical_batch: int,
    *,
    clear: Callable[[], None] = lambda: None,
) -> tuple[T, int]:
    """Return what a pass makes, and of how many studies at most it was.

    Parameters
    ----------
    compute
        Called with ``physical_batch``; as long as memory does not do, again with half as many.
    clear
        Lets go of what a pass left that ran out of memory.

    Raises
    ------
    FederationError
        If one study does not fit.
    """
    while True:
        with suppress(torch.OutOfMemoryError):  # past it, the exception holds no tensors
            return compute(physical_batch), physical_batch
        if physical_batch == 1:
            raise FederationError("one study does not fit into GPU memory: use a smaller model")
        clear()
        torch.cuda.empty_cache()
        physical_batch //= 2
