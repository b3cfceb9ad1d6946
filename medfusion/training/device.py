"""Where a site computes, and how much at once."""

import torch

from medfusion.errors import ConfigError, FederationError


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


def halved(physical_batch: int) -> int:
    """Return half of the studies of a pass that ran out of memory, which is set free first.

    Raises
    ------
    FederationError
        If it was one study.
    """
    if physical_batch == 1:
        raise FederationError("one study does not fit into GPU memory: use a smaller model")
    torch.cuda.empty_cache()
    return physical_batch // 2
