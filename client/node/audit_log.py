"""What a site's Node was asked and answered, for the people of the hospital.

``audit.jsonl`` in the state folder: a line for each event, only ever appended to. A line holds
the hash of the line before, and ``audit.head.json`` remembers how many there are and the hash of
the last one; both are on the disk before what they tell of leaves the site.

========================================  ====================================================
what happens to the file                  what notices
========================================  ====================================================
a line is edited, taken out or put in     the chain of hashes, at that line
the last lines, or all, are removed       the head
a power cut in the middle of a line       nothing has left yet: the next writer takes the torn
                                          line away, and says so in the next line
log *and* head are rewritten or put back  nothing here; a printed hash (`medfusion site log`)
                                          that is kept elsewhere does, for a private run the
                                          ledger's witness too
========================================  ====================================================

No event holds anything of a patient: names of requests, sizes, digests and our own refusals.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from medfusion.atomic_files import sync, write_json
from medfusion.errors import AuditLogError
from medfusion.folder_lock import one_at_a_time

EventKind = Literal[
    "started", "seen", "approved", "denied", "answered", "refused", "delivered", "repaired"
]

LOG, HEAD = "audit.jsonl", "audit.head.json"
_LOCK = ".audit.lock"
_FIRST = "0" * 64
_LONGEST_LINE = 1 << 20  # bytes; ours have less than 2,000


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of the log; ``at`` is in UTC, ``run`` None where it is about none."""

    number: int
    at: str
    event: str
    run: str | None
    details: dict[str, Any]
    previous: str
    hash: str

    @classmethod
    def after(
        cls, number: int, previous: str, event: str, run: str | None, details: Mapping[str, Any]
    ) -> Self:
        """Return the event that follows number ``number``, whose hash is ``previous``."""
        facts: dict[str, Any] = {
            "number": number + 1,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "event": event,
            "run": run,
            "details": dict(details),
            "previous": previous,
        }
        return cls(**facts, hash=_hash(facts))

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """Return what a line holds; None if it is not as it was written."""
        try:
            facts = json.loads(line)
            event = cls(**facts)
        except (ValueError, TypeError):
            return None
        del facts["hash"]
        same = event.line().rstrip() == line.rstrip() and event.hash == _hash(facts)
        return event if same else None

    def line(self) -> bytes:
        """Return what is written."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True)
class Report:
    """What a check of the log found.

    ``broken`` is the number of the first line that is wrong, None if none is; ``events`` are
    those before it. ``torn`` says that a write was cut off at the end, which breaks nothing.
    """

    events: tuple[Event, ...]
    broken: int | None = None
    reason: str = ""
    torn: bool = False


class AuditLog:
    """The audit log in a state folder; several processes may append, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LOG

    def append(self, event: EventKind, run: str | None, details: Mapping[str, Any]) -> None:
        """Write an event; it is on the disk when the call returns.

        Raises
        ------
        AuditLogError
            If the end of the log is not as it was left, or it cannot be written.
        """
        with self._alone():
            count, last = self._repair()
            self._write(Event.after(count, last, event, run, details))

    def verify(self) -> Report:
        """Check the whole log; raises `AuditLogError` if it cannot be read."""
        with self._alone():
            head = self._head()
            whole, torn = self._lines()
            events: list[Event] = []
            previous = _FIRST
            for number, line in enumerate(whole, start=1):
                event = Event.read(line)
                if event is None or (event.number, event.previous) != (number, previous):
                    if number == len(whole) > head[0]:  # never acknowledged: a torn write
                        return _against(head, events, torn=True)
                    reason = "was edited, or a line is missing there"
                    return Report(tuple(events), number, reason)
                events.append(event)
                previous = event.hash
            return _against(head, events, torn=bool(torn))

    def require_sound(self) -> None:
        """Refuse a log that is not as it was left.

        Raises
        ------
        AuditLogError
            Naming the line, and how to go on.
        """
        report = self.verify()
        if report.broken is not None:
            raise AuditLogError(
                f"{self._path}: line {report.broken} {report.reason}; restore {LOG} and {HEAD} "
                "from a backup, or keep both elsewhere for an inquiry and begin a new log"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with one_at_a_time(self._folder / _LOCK):
                yield
        except OSError as error:
            raise AuditLogError(
                f"{self._path}: cannot be used ({error.strerror}): nothing leaves the site; see to "
                "free space and to the owner of the file"
            ) from None

    def _repair(self) -> tuple[int, str]:
        """Take a torn line away; return the number and hash of the last event."""
        head, size = self._head(), self._path.stat().st_size if self._path.exists() else 0
        start, last = self._last_line(size)
        if not last or (last.endswith(b"\n") and Event.read(last) is not None):
            return self._end(head, last)
        # Only what was never acknowledged may go: the line before must be the head's.
        number, previous = self._end(head, self._last_line(start)[1])
        os.truncate(self._path, start)
        repaired = Event.after(number, previous, "repaired", None, {"bytes": size - start})
        self._write(repaired)
        return repaired.number, repaired.hash

    def _end(self, head: tuple[int, str], last: bytes) -> tuple[int, str]:
        """Return number and hash of the last whole line, which is the head's or the one after."""
        event = Event.read(last) if last else None
        found = (event.number, event.hash) if event else (0, _FIRST)
        follows = event is not None and (event.number - 1, event.previous) == head
        if found != head and not follows:
            raise AuditLogError(
                f"{self._path}: its end is not as it was left; `medfusion site log` names the line"
            )
        return found

    def _write(self, event: Event) -> None:
        begun = self._path.exists()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(event.line())
            file.flush()
            os.fsync(file.fileno())
        if not begun:
            sync(self._folder)
        head = {"schema": 1, "count": event.number, "hash": event.hash}
        write_json(self._folder / HEAD, head, durable=True)

    def _head(self) -> tuple[int, str]:
        path = self._folder / HEAD
        if not path.exists():
            return 0, _FIRST
        try:
            head = json.loads(path.read_text(encoding="utf-8"))
            return int(head["count"]), str(head["hash"])
        except (ValueError, KeyError, TypeError):
            raise AuditLogError(f"{path}: damaged; restore it from a backup") from None

    def _lines(self) -> tuple[list[bytes], bytes]:
        """Return the whole lines, and what follows the last of them."""
        data = self._path.read_bytes() if self._path.exists() else b""
        *whole, torn = data.split(b"\n")
        return whole, torn

    def _last_line(self, end: int) -> tuple[int, bytes]:
        """Return where the last line before byte ``end`` begins, and that line."""
        if end == 0:
            return 0, b""
        with self._path.open("rb") as file:
            file.seek(max(0, end - _LONGEST_LINE))
            data = file.read(min(end, _LONGEST_LINE))
        start = data.rfind(b"\n", 0, len(data) - 1) + 1
        return end - len(data) + start, data[start:]


def _against(head: tuple[int, str], events: list[Event], *, torn: bool) -> Report:
    """Hold a sound chain against the head: it may be longer, by what a crash kept from the head."""
    count, expected = head
    if len(events) < count:
        reason = f"is missing: the head knows {count} lines"
        return Report(tuple(events), len(events) + 1, reason, torn)
    if count and events[count - 1].hash != expected:
        return Report(tuple(events[: count - 1]), count, "was rewritten", torn)
    return Report(tuple(events), torn=torn)


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
