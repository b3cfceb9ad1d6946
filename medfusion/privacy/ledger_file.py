"""The file of a ledger: how it is opened, locked and written, and what a disk may fail with."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfusion.errors import LedgerError
from medfusion.privacy.ledger_chain import Entry

LEDGER = "ledger.sqlite3"
SCHEMA = 1
TABLES = f"""
CREATE TABLE entries (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, at TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE replies (charge INTEGER PRIMARY KEY REFERENCES entries, reply BLOB NOT NULL);
PRAGMA user_version = {SCHEMA};
"""
_LOCK_SECONDS = 30.0


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that commits to the disk; it may be used from other threads, in turn."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def insert(connection: sqlite3.Connection, entry: Entry) -> None:
    """Add a row."""
    row = (entry.number, entry.kind, entry.at, entry.body, entry.previous, entry.hash)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes; wait for another one for a while."""
    descriptor = os.open(folder / f".{LEDGER}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise LedgerError("another process writes to it; try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the ledger in refusals, and turn what a disk may fail with into one."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None
    except (sqlite3.Error, OSError) as error:
        full = "free space on its disk, and" if "full" in str(error) else "see to its disk, or"
        raise LedgerError(
            f"{path}: cannot be used ({error}): nothing is released; {full} restore the file, "
            "with its -wal, from a backup if it is damaged"
        ) from None
