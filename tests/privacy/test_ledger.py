"""The ledger: what it counts, what it survives, and what it refuses."""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import ledgers
import pytest
from ledgers import GATE, SITE, costs, new_ledger, open_ledger

from medfusion.errors import FederationError, LedgerError
from medfusion.privacy import ledger_chain, ledger_file
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.ledger_book import Reservation
from medfusion.privacy.ledger_file import LEDGER
from medfusion.privacy.ledger_witness import Witness, default_witnesses


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return new_ledger(tmp_path)


def reserve(ledger: Ledger, run: str = "run", **parts: float) -> Reservation:
    return ledger.reserve(run, settings_sha256=f"of {run}", costs=costs(**parts), gate=GATE)


def released(ledger: Ledger, *, rounds: int = 2) -> Ledger:
    """Release some rounds; return the ledger."""
    run = reserve(ledger)
    for number in range(1, rounds + 1):
        ledger.release(run, "train", number, f"c{number}", lambda: b"reply")
    return ledger


def raises(error: BaseException) -> Callable[..., bytes]:
    def fail(*_: object, **__: object) -> bytes:
        raise error

    return fail


def test_a_release_is_charged_before_it_is_computed_and_stored_before_it_leaves(
    ledger: Ledger, tmp_path: Path
) -> None:
    def compute() -> bytes:
        other = open_ledger(tmp_path)  # another process would see the same
        (charge,) = other.book.charges.values()
        assert charge.reply_sha256 is None
        other.close()
        return b"reply"

    reply = ledger.release(reserve(ledger), "train", 1, "c", compute)
    other = open_ledger(tmp_path)
    (charge,) = other.book.charges.values()
    assert other.stored(charge) == reply == b"reply"


def test_a_stored_reply_is_returned_whatever_would_be_computed_now(
    ledger: Ledger, tmp_path: Path
) -> None:
    released(ledger)
    for opened in (ledger, open_ledger(tmp_path)):
        reply = opened.release(reserve(opened), "train", 1, "c1", raises(AssertionError()))
        assert reply == b"reply"
        assert len(opened.book.charges) == 2


def test_an_old_reply_is_dropped_and_only_the_same_one_is_sent_again(ledger: Ledger) -> None:
    released(ledger, rounds=3)
    run = reserve(ledger)
    first, *later = ledger.book.charges.values()
    assert ledger.stored(first) is None
    assert [ledger.stored(charge) for charge in later] == [b"reply"] * 2
    assert ledger.release(run, "train", 1, "c1", lambda: b"reply") == b"reply"
    with pytest.raises(FederationError, match="does not come out the same"):
        ledger.release(run, "train", 1, "c1", lambda: b"another")


def test_a_release_that_failed_stays_charged_and_may_be_computed_again(ledger: Ledger) -> None:
    run = reserve(ledger)
    with pytest.raises(ZeroDivisionError):
        ledger.release(run, "train", 1, "c", raises(ZeroDivisionError()))
    assert len(ledger.book.charges) == 1
    assert ledger.release(run, "train", 1, "c", lambda: b"reply") == b"reply"
    assert len(ledger.book.charges) == 1


def test_another_content_for_the_same_round_is_refused(ledger: Ledger) -> None:
    released(ledger)
    with pytest.raises(FederationError, match="released already"):
        ledger.release(reserve(ledger), "train", 1, "other", raises(AssertionError()))


@pytest.mark.parametrize(("kind", "limit"), [("select", 1), ("train", 3), ("evaluate", 2)])
def test_a_plan_pays_for_so_many_releases_of_each_kind(
    ledger: Ledger, kind: str, limit: int
) -> None:
    run = reserve(ledger, evaluations=2)
    for number in range(limit):
        ledger.release(run, kind, number, "c", lambda: b"")
    with pytest.raises(FederationError, match=f"pays for {limit} releases of kind '{kind}'"):
        ledger.release(run, kind, limit, "c", raises(AssertionError()))


def test_a_plan_is_reserved_once_and_whole(ledger: Ledger, tmp_path: Path) -> None:
    big = {"noise": 2.0, "rounds": 4}
    first = reserve(ledger, "one", **big)
    assert reserve(ledger, "one", **big) == reserve(open_ledger(tmp_path), "one", **big) == first
    for opened in (ledger, open_ledger(tmp_path)):
        with pytest.raises(FederationError, match=r"of 8 is reserved.* \d of its 40 rounds fit"):
            reserve(opened, "two", noise=2.0, rounds=40)
    assert len(ledger.book.reservations) == 1
    with pytest.raises(FederationError, match="another plan"):
        reserve(ledger, "one", noise=3.0, rounds=4)


def test_plans_of_several_runs_add_up_until_one_is_refused(ledger: Ledger) -> None:
    with suppress(FederationError):
        for number in range(30):
            reserve(ledger, f"run {number}", noise=4.0, rounds=1)
    assert 1 < len(ledger.book.reservations) < 30
    assert GATE.epsilon(ledger.book.plans()) <= GATE.max_epsilon


# What a hospital may do to its files, or a crash.


def test_a_missing_ledger_is_begun_only_where_there_never_was_one(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(LedgerError, match="no ledger"):
        open_ledger(tmp_path)
    released(new_ledger(tmp_path)).close()
    with pytest.raises(LedgerError, match="exists already"):
        new_ledger(tmp_path)
    shutil.rmtree(tmp_path / "state")
    for attempt in (open_ledger, new_ledger):
        (tmp_path / "state").mkdir(exist_ok=True)
        with pytest.raises(LedgerError, match=r"missing.*restore it"):
            attempt(tmp_path)


def test_a_crash_while_a_ledger_is_begun_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", raises(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            new_ledger(tmp_path)
    new_ledger(tmp_path).close()
    assert open_ledger(tmp_path).book.head.count == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("UPDATE entries SET body = replace(body, 'c1', 'c2') WHERE number = 3", "row 3 "),
        ("UPDATE entries SET at = '2020' WHERE number = 2", "row 2 "),
        ("DELETE FROM entries WHERE number = 3", "row 3 "),
        ("DELETE FROM entries WHERE number > 4", "rolled back: 4 rows here, 6"),
        ("PRAGMA user_version = 2", "install the newer one"),
    ],
)
def test_an_edited_file_is_refused(tmp_path: Path, edit: str, message: str) -> None:
    released(new_ledger(tmp_path)).close()
    with sqlite3.connect(tmp_path / "state" / LEDGER) as connection:
        connection.execute(edit)
    connection.close()
    with pytest.raises(LedgerError, match=message):
        open_ledger(tmp_path)


def test_a_history_made_anew_is_refused(tmp_path: Path) -> None:
    """Hashes are no secret: whoever rewrites the file can chain it; the witness knows better."""
    released(new_ledger(tmp_path)).close()
    entries = ledger_chain.Entry
    with sqlite3.connect(tmp_path / "state" / LEDGER) as connection:
        columns = "number, kind, at, body, previous, hash"
        rows = connection.execute(f"SELECT {columns} FROM entries ORDER BY number").fetchall()
        connection.execute("DELETE FROM entries")
        head = ledger_chain.EMPTY
        for _, kind, at, body, *_ in rows:
            entry = entries.after(head, kind, at, json.loads(body.replace('"c2"', '"c9"')))
            ledger_file.insert(connection, entry)
            head = ledger_chain.check_chain(head, [entry])
    connection.close()
    with pytest.raises(LedgerError, match=r"row 6 differs.*restore"):
        open_ledger(tmp_path)


def test_an_edited_reply_is_refused(tmp_path: Path) -> None:
    released(new_ledger(tmp_path)).close()
    with sqlite3.connect(tmp_path / "state" / LEDGER) as connection:
        connection.execute("UPDATE replies SET reply = x'00' WHERE charge = 3")
    connection.close()
    ledger = open_ledger(tmp_path)
    with pytest.raises(LedgerError, match="reply of row 3 was edited"):
        ledger.release(reserve(ledger), "train", 1, "c1", raises(AssertionError()))


def test_an_older_copy_of_the_file_is_refused_and_the_newer_one_is_not(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    run = reserve(ledger)
    ledger.close()
    file = tmp_path / "state" / LEDGER
    old = shutil.copy(file, tmp_path / "old")
    ledger = open_ledger(tmp_path)
    ledger.release(run, "train", 1, "c", lambda: b"reply")
    ledger.close()
    new = shutil.copy(file, tmp_path / "new")
    shutil.copy(old, file)
    with pytest.raises(LedgerError, match=r"rolled back.*restore the newer file"):
        open_ledger(tmp_path)
    shutil.copy(new, file)
    assert len(open_ledger(tmp_path).book.charges) == 1


def test_a_copied_folder_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    released(new_ledger(tmp_path)).close()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "state", copy)
    with pytest.raises(LedgerError, match="this is a copy"):
        Ledger(copy, site=SITE, witnesses=tmp_path / "witnesses")
    with pytest.raises(LedgerError, match="witnesses this ledger"):
        Ledger(copy, site=SITE, witnesses=tmp_path / "another machine's")
    (tmp_path / "state").rename(tmp_path / "moved")
    moved = Ledger(tmp_path / "moved", site=SITE, witnesses=tmp_path / "witnesses")
    assert len(moved.book.charges) == 2


def test_the_ledger_of_another_site_is_refused(tmp_path: Path) -> None:
    new_ledger(tmp_path).close()
    with pytest.raises(LedgerError, match="ledger of site 'north', expected 'south'"):
        open_ledger(tmp_path, site="south")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    released(new_ledger(tmp_path)).close()
    file = tmp_path / "state" / LEDGER
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(LedgerError, match="from a backup"):
        open_ledger(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(LedgerError, match="from a backup"):
        open_ledger(tmp_path)


def test_a_crash_before_the_witness_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = new_ledger(tmp_path)
    run = reserve(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(Witness, "write", raises(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            ledger.release(run, "train", 1, "c", raises(AssertionError()))
    ledger.close()
    again = open_ledger(tmp_path)
    assert len(again.book.charges) == 1
    assert again.release(run, "train", 1, "c", lambda: b"reply") == b"reply"
    assert len(again.book.charges) == 1


@pytest.mark.parametrize("full", ["ledger", "witnesses"])
def test_on_a_full_disk_nothing_is_computed(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    run = reserve(ledger)
    if full == "ledger":
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        content = "c" * 100_000
    else:
        content = "c"
        monkeypatch.setattr(Witness, "write", raises(OSError(28, "No space left: disk full")))
    with pytest.raises(LedgerError, match=r"nothing is released; free space"):
        ledger.release(run, "train", 1, content, raises(AssertionError()))
    monkeypatch.undo()
    ledger._connection.execute("PRAGMA max_page_count = 1000000")
    assert ledger.release(run, "train", 1, content, lambda: b"reply") == b"reply"
    assert len(open_ledger(tmp_path).book.charges) == 1


def test_a_reply_that_does_not_fit_on_the_disk_does_not_leave(ledger: Ledger) -> None:
    run = reserve(ledger)
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LedgerError, match="full"):
        ledger.release(run, "train", 1, "c", lambda: b"x" * 1_000_000)
    ledger._connection.execute("PRAGMA max_page_count = 1000000")
    (charge,) = ledger.book.charges.values()
    assert charge.reply_sha256 is None


def test_two_at_once_lose_nothing(ledger: Ledger, tmp_path: Path) -> None:
    run = reserve(ledger, noise=10_000.0, rounds=40)
    start = threading.Barrier(2)

    def work(first: int) -> None:
        mine = open_ledger(tmp_path)
        start.wait()
        for number in range(first, 40, 2):
            mine.release(run, "train", number, f"c{number}", lambda: b"reply")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    book = open_ledger(tmp_path).book
    assert sorted(charge.slot[2] for charge in book.charges.values()) == list(range(40))


_HOLD = """
import sys, time
from pathlib import Path
from medfusion.privacy.ledger_file import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_waits_a_while_and_then_refuses(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_LOCK_SECONDS", 0.2)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match="another process writes"):
            reserve(ledger)
        holder.kill()
    reserve(ledger)


def test_a_file_replaced_in_use_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "state" / LEDGER
    shutil.copy(file, tmp_path / "copy")
    (tmp_path / "copy").replace(file)
    with pytest.raises(LedgerError, match="replaced while in use"):
        reserve(ledger)


def test_witnesses_are_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/some")
    assert default_witnesses() == Path("/var/lib/some/medfusion/anchors")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_witnesses() == Path.home() / ".local" / "state" / "medfusion" / "anchors"


def test_what_a_plan_pays_for_survives_its_text() -> None:
    assert ledgers.PlanCosts.from_json(costs().to_json()) == costs()
    assert costs(rounds=5, evaluations=4).in_rounds(2) == costs(rounds=2, evaluations=2)
