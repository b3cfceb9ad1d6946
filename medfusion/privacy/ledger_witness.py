"""The witness of a ledger: a file in another folder that remembers how far the ledger was.

A chain of hashes inside a file cannot tell that the whole file was put back to an older state,
copied to a second place, or removed; this file can. It is written after each entry of the
ledger. A crash in between leaves it behind by what the ledger has more, which is no harm: the
ledger may extend the witnessed history, and may never lack any of it.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import LedgerError
from medfusion.privacy.ledger_chain import EMPTY, Head


def default_witnesses() -> Path:
    """Return the folder of this user's witnesses."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "medfusion" / "anchors"


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What is remembered of the ledger in ``folder``, which had ``count`` entries."""

    uuid: str
    site: str
    folder: str
    device: int
    inode: int
    count: int
    hash: str
    schema: int = 1

    @classmethod
    def of(cls, folder: Path, *, uuid: str, site: str, head: Head) -> Self:
        """Return a witness of the ledger in ``folder``."""
        stat = folder.stat()
        return cls(
            uuid=uuid,
            site=site,
            folder=str(folder.resolve()),
            device=stat.st_dev,
            inode=stat.st_ino,
            count=head.count,
            hash=head.hash,
        )

    @property
    def head(self) -> Head:
        """The end of the witnessed history."""
        return Head(self.count, self.hash)

    def is_of(self, folder: Path) -> bool:
        """Whether ``folder`` is the witnessed one: at its place, or itself moved elsewhere."""
        if self.folder == str(folder.resolve()):
            return True
        if not folder.exists():
            return False
        stat = folder.stat()
        return (self.device, self.inode) == (stat.st_dev, stat.st_ino)

    def write(self, witnesses: Path) -> None:
        """Write the file, whole or not at all, and bring it to the disk."""
        make_folder(witnesses, mode=0o700)
        write_json(witnesses / f"{self.uuid}.json", asdict(self), durable=True)


def read_witness(witnesses: Path, uuid: str) -> Witness:
    """Return the witness of a ledger.

    Raises
    ------
    LedgerError
        If there is none, or it is damaged.
    """
    witness = _read(witnesses / f"{uuid}.json")
    if witness is None:
        raise LedgerError(
            f"nothing in {witnesses} witnesses this ledger: it was copied from elsewhere, or its "
            f"witness was lost; restore {uuid}.json there from a backup, or use the ledger where "
            "it came from"
        )
    return witness


def check_witness(
    witness: Witness, folder: Path, *, head: Head, holds: Callable[[Head], bool]
) -> None:
    """Refuse a ledger that is not the witnessed one, or lacks entries that it had.

    Parameters
    ----------
    witness
        Read before the ledger, to which another process may add meanwhile.
    folder, head
        Where the ledger is, and how far it goes.
    holds
        Whether the ledger's history went through a head.

    Raises
    ------
    LedgerError
    """
    if not witness.is_of(folder):
        raise LedgerError(
            f"this is a copy: the ledger itself is in {witness.folder}; use it there, or, if that "
            "one is gone for good, move the whole state folder to that path"
        )
    if head.count < witness.count:
        raise LedgerError(
            f"it was rolled back: {head.count} rows here, {witness.count} were witnessed; restore "
            "the newer file, with its -wal, from a backup"
        )
    if not holds(witness.head):
        raise LedgerError(
            f"row {witness.count} differs from the one that was witnessed: its history was "
            "rewritten; restore the true file, with its -wal, from a backup"
        )


def refuse_if_witnessed(witnesses: Path, folder: Path, *, site: str) -> None:
    """Refuse to begin a new ledger for a site where one was.

    A folder's inode alone says little: file systems give it to another one later.

    Raises
    ------
    LedgerError
    """
    for path in sorted(witnesses.glob("*.json")):
        witness = _read(path)
        if witness is None or witness.head == EMPTY:
            continue
        if witness.folder == str(folder.resolve()) or (
            witness.site == site and witness.is_of(folder)
        ):
            raise LedgerError(
                f"missing: the ledger of site {witness.site!r} was here, with {witness.count} "
                "rows; restore it, with its -wal, from a backup: a new one would forget what was "
                "spent"
            )


def _read(path: Path) -> Witness | None:
    try:
        return Witness(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise LedgerError(
            f"its witness {path} is damaged; restore that file from a backup"
        ) from None
