"""Files of private keys."""

import stat
from pathlib import Path

from medfusion.errors import ConfigError


def read_key_file(path: Path) -> bytes:
    """Return what a private key's file holds.

    Raises
    ------
    ConfigError
        If it is missing or cannot be read, or if others than its owner may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); bring it back from where it is kept"
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"{path}: expected a key for its owner alone, found mode {mode:04o}; if nobody "
            f"else had it: chmod 600 {path}"
        )
    return content
