"""The state folder: the one place that a Node writes to."""

import os
import secrets
from pathlib import Path

_SECRET = "secret"  # noqa: S105 -- a file name
_SECRET_BYTES = 32


class NodeState:
    """A site's state folder: its secret, its image cache, the models delivered to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @property
    def cache(self) -> Path:
        """Folder of the decoded images."""
        return self._folder / "cache"

    def model_folder(self, run_id: str) -> Path:
        """Folder for the model that ``run_id`` delivers."""
        return self._folder / "models" / run_id

    def secret(self) -> bytes:
        """Return the site's secret, made once and readable by its owner only."""
        path = self._folder / _SECRET
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_bytes()
        with os.fdopen(descriptor, "wb") as file:
            value = secrets.token_bytes(_SECRET_BYTES)
            file.write(value)
        return value
