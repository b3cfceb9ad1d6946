"""What a call of `provision` did, and how it writes: only what changes, whole or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medfusion.atomic_files import create_secret, unfinished, write_atomically

Action = Literal["made", "kept", "changed", "renewed", "admitted", "waiting", "revoked"]


@dataclass(frozen=True)
class Step:
    """One line of the table that tells what was done."""

    action: Action
    subject: str
    detail: str = ""


def put(path: Path, content: bytes) -> None:
    """Write a file unless it holds this content already."""
    _clear(path)
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content, durable=True)


def put_secret(path: Path, make: Callable[[], bytes]) -> None:
    """Write a file for its owner alone unless there is one."""
    _clear(path)
    if not path.exists():
        create_secret(path, make())


def _clear(path: Path) -> None:
    """Remove what calls that were killed left of a file; nobody else writes it meanwhile."""
    for left in unfinished(path):
        left.unlink()
