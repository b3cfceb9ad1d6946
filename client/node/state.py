"""The state folder: the one place that a Node writes to."""

import re
import secrets
from pathlib import Path

from medfusion.atomic_files import create_secret, make_folder
from medfusion.errors import FederationError
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.ledger_file import LEDGER

_SECRET = "secret"  # noqa: S105 -- a file name
_SECRET_BYTES = 32
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class NodeState:
    """A site's state folder: its secret, ledger and image cache, the models delivered to it.

    A new folder is closed to other OS users.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder, mode=0o700)
        self._folder = folder

    @property
    def cache(self) -> Path:
        """Folder of the decoded images."""
        return self._folder / "cache"

    def model_folder(self, run_id: str) -> Path:
        """Folder for the model that ``run_id`` delivers.

        Raises
        ------
        FederationError
            If the id, which comes from the coordinator, is not a plain name.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise FederationError(
                "run_id: expected a name of at most 200 letters, digits, '.', '_' and '-'"
            )
        return self._folder / "models" / run_id

    def ledger(self, site: str, *, witnesses: Path) -> Ledger:
        """Open the ledger of ``site``; it is begun where there never was one.

        Raises
        ------
        LedgerError
            If the ledger is not as it was left.
        """
        if not (self._folder / LEDGER).exists():
            Ledger.create(self._folder, site=site, witnesses=witnesses).close()
        return Ledger(self._folder, site=site, witnesses=witnesses)

    def secret(self) -> bytes:
        """Return the site's secret, made once and readable by its owner only.

        Raises
        ------
        FederationError
            If the file is damaged.
        """
        path = self._folder / _SECRET
        if not path.exists():
            create_secret(path, secrets.token_bytes(_SECRET_BYTES))
        value = path.read_bytes()
        if len(value) < _SECRET_BYTES:
            raise FederationError(
                f"{path}: expected {_SECRET_BYTES} bytes, found {len(value)}; restore the file "
                "from a backup, or remove it to have a new one made"
            )
        return value
