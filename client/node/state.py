"""The state folder: the one place that a Node writes to."""

import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from client.node.state_files import read_state_file
from medfusion.atomic_files import create_secret, make_folder, write_json
from medfusion.errors import FederationError
from medfusion.federation.authority import Authority
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.ledger_file import LEDGER

_SECRET = "secret"  # noqa: S105 -- a file name
_SECRET_BYTES = 32
_COORDINATOR = "coordinator.json"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class NodeState:
    """A site's state folder: secret, coordinator, ledger, runs, audit log, cache, models.

    A new folder is closed to other OS users.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder, mode=0o700)
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self._folder

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
        return self._folder / "models" / _checked(run_id)

    def strategy_folder(self, run_id: str) -> Path:
        """Folder of what the strategy of ``run_id`` remembers here; raises as `model_folder`."""
        return self._folder / "strategies" / _checked(run_id)

    def forget_strategies_of_delivered(self, *, but: str) -> None:
        """Drop what strategies remember of runs that delivered their model, but for one of them.

        Not at the delivery itself, which may have to be repeated.
        """
        for folder in (self._folder / "strategies").glob("*"):
            if folder.name != but and self.model_folder(folder.name).exists():
                shutil.rmtree(folder)

    @property
    def runs(self) -> Path:
        """Folder of what is known and decided of each run."""
        return self._folder / "runs"

    def run_file(self, run_id: str) -> Path:
        """File of what is known and decided of ``run_id``; raises as `model_folder`."""
        return self.runs / f"{_checked(run_id)}.json"

    def releases_file(self, run_id: str) -> Path:
        """File of what a run without privacy has released; raises as `model_folder`."""
        return self._folder / "releases" / f"{_checked(run_id)}.json"

    def pin(self, authority: Authority) -> None:
        """Bind the site to its coordinator for good, or make sure that it is the same one.

        Raises
        ------
        FederationError
            If the site serves another coordinator or federation, or the file is damaged.
        """
        path = self._folder / _COORDINATOR

        def read(kept: Any) -> Authority:
            kept.pop("schema")
            return Authority.parse(kept, where=str(path))

        pinned = read_state_file(
            path,
            read,
            damaged=f"{path}: expected the coordinator of this site, found a damaged file; restore "
            "it from a backup",
        )
        if pinned is None:
            write_json(path, {"schema": 1, **authority.model_dump()}, durable=True)
            return
        if pinned != authority:
            raise FederationError(
                f"{path}: this site serves federation {pinned.federation!r} with the signing key "
                f"{pinned.fingerprint[:16]}, the kit names {authority.federation!r} with "
                f"{authority.fingerprint[:16]}; expected the same ones. To change coordinators on "
                "purpose, confirm the new fingerprint by another channel, then remove the file"
            )

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

    @staticmethod
    def is_begun(folder: Path) -> bool:
        """Whether a Node has served from a folder, whose secret is there then."""
        return (folder / _SECRET).exists()

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


def _checked(run_id: str) -> str:
    """Return a run's id if it is a plain name."""
    if not _RUN_ID.fullmatch(run_id):
        raise FederationError(
            "run_id: expected a name of at most 200 letters, digits, '.', '_' and '-'"
        )
    return run_id
