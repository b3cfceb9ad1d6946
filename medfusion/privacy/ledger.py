"""A hospital's durable privacy ledger: what was reserved, charged and released, for good.

One SQLite file per site, append-only. A run reserves its whole plan, if the site's `Gate` lets
it; a release is *charged* before it is computed, and its reply *stored* before it is sent, so
that a crash at any instant leaves

==========================  =====================================================
crash before                what a repeated request finds
==========================  =====================================================
the charge is on the disk   nothing: it is charged as if asked for the first time
the reply is on the disk    the charge: it is computed again, and paid once, since
                            nothing had left
the reply is sent           the stored reply: the same bytes are sent
==========================  =====================================================

Replies of older rounds are dropped for their size; asked for again, one is computed anew and
sent if it has the digest that was stored. So what was charged is never less than what
left the site. Every change is one transaction, under a lock that the operating system lets go
of if the process dies; entries form a chain of hashes whose head is witnessed in another folder
(`medfusion.privacy.ledger_witness`).
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from medfusion.atomic_files import sync
from medfusion.errors import FederationError, LedgerError
from medfusion.privacy.ledger_book import Book, Charge, Reservation, Slot
from medfusion.privacy.ledger_chain import EMPTY, Entry, EntryKind, check_chain
from medfusion.privacy.ledger_file import LEDGER, SCHEMA, TABLES, connect, insert, locked, naming
from medfusion.privacy.ledger_receipt import Receipt, check_receipt
from medfusion.privacy.ledger_witness import (
    Witness,
    check_witness,
    read_witness,
    refuse_if_witnessed,
)
from medfusion.privacy.plan_costs import PlanCosts, ReleaseKind
from medfusion.privacy.renyi_filter import Gate

_KEPT = 2  # rounds of which replies are kept: a coordinator goes back by one at most


class Ledger:
    """The ledger in a site's state folder, opened; `create` begins one.

    Parameters
    ----------
    folder
        The site's state folder.
    site
        The site's name, which the ledger must bear.
    witnesses
        Folder of the witnesses: on another disk, if there is one.

    Raises
    ------
    LedgerError
        If the ledger is missing, damaged, edited, copied, rolled back, another site's, or from
        a newer MedFusion. The message says how to recover; no way back renews what was spent.
    """

    def __init__(self, folder: Path, *, site: str, witnesses: Path) -> None:
        self._folder = folder
        self._path = folder / LEDGER
        self._witnesses = witnesses
        self.book = Book()
        with naming(self._path):
            if not self._path.exists():
                refuse_if_witnessed(witnesses, folder, site=site)
                raise LedgerError("there is no ledger")
            self._connection = connect(self._path)
            self._inode = self._path.stat().st_ino
            self._read()
            if self.book.site != site:  # one that another site left here, or a copied folder
                raise LedgerError(
                    f"it is the ledger of site {self.book.site!r}, expected {site!r}: each site "
                    "keeps its own state folder"
                )
            self._check_witness()

    @classmethod
    def create(cls, folder: Path, *, site: str, witnesses: Path) -> Self:
        """Begin the ledger of a site that never had one.

        Raises
        ------
        LedgerError
            If there is one, or one was witnessed here.
        """
        path = folder / LEDGER
        with naming(path), locked(folder):
            if path.exists():
                raise LedgerError("exists already")
            refuse_if_witnessed(witnesses, folder, site=site)
            uuid = str(uuid4())
            partial = folder / f".{LEDGER}.partial"
            for old in folder.glob(f".{LEDGER}.partial*"):
                old.unlink()
            with closing(connect(partial)) as connection:
                connection.executescript(TABLES)
                insert(
                    connection, Entry.after(EMPTY, "create", _now(), {"uuid": uuid, "site": site})
                )
            # Witnessed as empty first: a ledger without a witness would not be opened.
            Witness.of(folder, uuid=uuid, site=site, head=EMPTY).write(witnesses)
            partial.rename(path)
            sync(folder)
        return cls(folder, site=site, witnesses=witnesses)

    def close(self) -> None:
        """Close the file; SQLite then folds its -wal into it."""
        self._connection.close()

    def receipt(self, secret: bytes) -> Receipt:
        """Return how far the ledger is, for the coordinator to keep."""
        return Receipt.of(self.book, secret)

    def check_receipt(self, receipt: Receipt, secret: bytes) -> None:
        """Refuse to go on if the coordinator has seen more; raises `LedgerError`."""
        with naming(self._path):
            self._read()
            check_receipt(receipt, self.book, secret)

    def reserve(
        self, run: str, *, settings_sha256: str, costs: PlanCosts, gate: Gate
    ) -> Reservation:
        """Return the reservation of a run's plan, made now if the gate lets it.

        Raises
        ------
        FederationError
            If the plan does not fit beside those reserved before, or differs from the one that
            was reserved for the same settings.
        """
        with self._writing():
            known = self.book.reservation_of(settings_sha256)
            if known is None:
                gate.require(self.book.plans(), costs)
                body = {"run": run, "settings_sha256": settings_sha256, "costs": costs.to_json()}
                ceiling = {"max_epsilon": gate.max_epsilon, "delta": gate.delta}
                self._append("reserve", body | ceiling)
        known = self.book.reservation_of(settings_sha256)
        assert known is not None
        if known.costs != costs:
            raise FederationError(
                f"run {run!r} reserved another plan on {known.at}: patients_public "
                "or [policy] delta changed since; put them back, or start a new run"
            )
        return known

    def release(
        self,
        reservation: Reservation,
        kind: ReleaseKind,
        number: int,
        content: str,
        compute: Callable[[], bytes],
    ) -> bytes:
        """Return the reply of a release: charged, computed, stored; or the stored one.

        Parameters
        ----------
        number
            The round, 0 before the first one.
        content
            Hash of everything that the release depends on; equal contents give equal replies.
        compute
            Returns the reply; called after the charge is on the disk, if at all.

        Raises
        ------
        FederationError
            If the plan holds no further release of this kind, or the round had another content.
        """
        charge = self.charge(reservation, kind, number, content)
        if charge.reply_sha256 is not None:
            kept = self.stored(charge)
            return self._again(charge, compute()) if kept is None else kept
        self.store(charge, reply := compute())
        return reply

    def charge(
        self, reservation: Reservation, kind: ReleaseKind, number: int, content: str
    ) -> Charge:
        """Return the charge of a release, made now if there is none; raises as `release`."""
        slot: Slot = (reservation.number, kind, number)
        with self._writing():
            if slot not in self.book.slots:
                self.book.check_slot(slot)
                facts = {"reservation": slot[0], "kind": kind, "round": number, "content": content}
                self._append("charge", facts)
        charge = self.book.slots[slot]
        if charge.content != content:
            raise FederationError(
                f"{kind} of round {number} was released already, from another model: refused"
            )
        return charge

    def store(self, charge: Charge, reply: bytes) -> None:
        """Keep the reply of a charge; one that was kept already stays."""
        with self._writing():
            if self.book.charges[charge.number].reply_sha256 is None:
                digest = hashlib.sha256(reply).hexdigest()
                self._append("store", {"charge": charge.number, "reply_sha256": digest})
                self._connection.execute(
                    "INSERT INTO replies VALUES (?, ?)", (charge.number, reply)
                )
                reservation, kind, number = charge.slot
                earlier = self.book.slots.get((reservation, kind, number - _KEPT))
                if earlier is not None:
                    self._connection.execute(
                        "DELETE FROM replies WHERE charge = ?", (earlier.number,)
                    )

    def stored(self, charge: Charge) -> bytes | None:
        """Return the reply that was kept, None if no longer.

        Raises
        ------
        LedgerError
            If the reply is not what was stored.
        """
        with naming(self._path):
            row = self._connection.execute(
                "SELECT reply FROM replies WHERE charge = ?", (charge.number,)
            ).fetchone()
            if row is None:
                return None
            reply = bytes(row[0])
            expected = self.book.charges[charge.number].reply_sha256
            if hashlib.sha256(reply).hexdigest() != expected:
                raise LedgerError(
                    f"the reply of row {charge.number} was edited; restore the file, with its "
                    "-wal, from the newest backup"
                )
        return reply

    def _again(self, charge: Charge, reply: bytes) -> bytes:
        """Return a reply that was sent before and computed anew; refuse a different one.

        Raises
        ------
        FederationError
        """
        if hashlib.sha256(reply).hexdigest() != charge.reply_sha256:
            raise FederationError(
                f"{charge.slot[1]} of round {charge.slot[2]} was released on {charge.at}; its "
                "reply is no longer kept, and does not come out the same on this machine: refused"
            )
        return reply

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, alone, on a book that is up to date; then the witness."""
        with naming(self._path), locked(self._folder):
            if not self._path.exists() or self._path.stat().st_ino != self._inode:
                raise LedgerError("the file was replaced while in use; stop this process")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_witness()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            self._read()
            Witness.of(
                self._folder, uuid=self.book.uuid, site=self.book.site, head=self.book.head
            ).write(self._witnesses)

    def _append(self, kind: EntryKind, facts: dict[str, Any]) -> None:
        insert(self._connection, Entry.after(self.book.head, kind, _now(), facts))

    def _read(self) -> None:
        """Bring the book up to date with the file."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise LedgerError(
                f"it has schema {version}, this MedFusion reads {SCHEMA}: install the newer one"
            )
        if version < SCHEMA:
            raise LedgerError("it is no ledger; restore the file, with its -wal, from a backup")
        count = self.book.head.count
        rows = self._connection.execute(
            "SELECT number, kind, at, body, previous, hash FROM entries "
            "WHERE number >= ? ORDER BY number",
            (max(count, 1),),
        ).fetchall()
        entries = [Entry(*row) for row in rows]
        # The last one that is known must still be there.
        if count and (not entries or entries.pop(0).hash != self.book.head.hash):
            raise LedgerError(f"row {count} was changed while in use; stop this process")
        check_chain(self.book.head, entries)
        for entry in entries:
            self.book.add(entry)

    def _check_witness(self) -> None:
        """Bring the book up to date and hold it against its witness."""
        witness = read_witness(self._witnesses, self.book.uuid)
        self._read()
        check_witness(witness, self._folder, head=self.book.head, holds=self.book.holds)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
