"""The one reader of JSON files in a site's state folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from medfusion.errors import ConfigError, FederationError

T = TypeVar("T")


def read_state_file(path: Path, read: Callable[[Any], T], *, damaged: str) -> T | None:
    """Return what ``read`` makes of a file's data; None if there is no file.

    Parameters
    ----------
    damaged
        What to tell the coordinator and the site's people otherwise, and how to mend it.

    Raises
    ------
    FederationError
        If the file cannot be read, or ``read`` can make nothing of it.
    """
    if not path.exists():
        return None
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, ConfigError):
        raise FederationError(damaged) from None
