"""The hash chain of a ledger: what an entry holds, and how an edited one is found."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from medfusion.errors import LedgerError

EntryKind = Literal["create", "reserve", "charge", "store"]


@dataclass(frozen=True)
class Head:
    """The end of a chain: how many entries it has, and the hash of the last one."""

    count: int
    hash: str


EMPTY = Head(0, "0" * 64)


@dataclass(frozen=True)
class Entry:
    """One fact of a ledger's history; ``at`` is in UTC, ``body`` is JSON text."""

    number: int
    kind: EntryKind
    at: str
    body: str
    previous: str
    hash: str

    @classmethod
    def after(cls, head: Head, kind: EntryKind, at: str, body: dict[str, Any]) -> Self:
        """Return the entry that continues a chain."""
        text = json.dumps(body, sort_keys=True)
        number = head.count + 1
        return cls(number, kind, at, text, head.hash, _hash(number, kind, at, text, head.hash))

    @property
    def facts(self) -> dict[str, Any]:
        """The body as data."""
        facts = json.loads(self.body)
        assert isinstance(facts, dict)
        return facts


def check_chain(head: Head, entries: Iterable[Entry]) -> Head:
    """Return the end of a chain that ``entries`` continue from ``head``.

    Raises
    ------
    LedgerError
        If an entry was edited, taken out or put in; the message names it.
    """
    for entry in entries:
        expected = _hash(head.count + 1, entry.kind, entry.at, entry.body, head.hash)
        if (entry.number, entry.previous, entry.hash) != (head.count + 1, head.hash, expected):
            raise LedgerError(
                f"row {head.count + 1} was edited, or a row is missing there; restore the file "
                "and its -wal from the newest backup"
            )
        head = Head(entry.number, entry.hash)
    return head


def _hash(number: int, kind: str, at: str, body: str, previous: str) -> str:
    content = json.dumps([number, kind, at, body, previous])
    return hashlib.sha256(content.encode()).hexdigest()
