"""Where a site computes."""

import torch

from medfusion.errors import ConfigError


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
