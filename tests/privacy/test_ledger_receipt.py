"""A ledger and its witness put back together: what the coordinator has seen tells."""

import shutil
from pathlib import Path

import pytest
from ledgers import GATE, costs, new_ledger, open_ledger, reply_of

from medfusion.errors import LedgerError
from medfusion.privacy.ledger import Ledger

KEY = b"the site's secret"


def train(ledger: Ledger, number: int, content: str = "content") -> None:
    run = ledger.reserve("run", settings_sha256="s", costs=costs(), gate=GATE)
    ledger.release(run, "train", number, content, lambda: reply_of(number))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy of ledger and witness after the first of two rounds."""
    ledger = new_ledger(tmp_path / "machine")
    train(ledger, 1)
    ledger.close()
    shutil.copytree(tmp_path / "machine", tmp_path / "backup")
    return tmp_path / "backup"


def put_back(older: Path) -> Ledger:
    """Restore state and witness in place, the folder itself being kept."""
    machine = older.parent / "machine"
    for path in older.rglob("*"):
        if path.is_file():
            shutil.copy(path, machine / path.relative_to(older))
    return open_ledger(machine)


def test_a_receipt_holds_while_the_ledger_grows(older: Path) -> None:
    ledger = open_ledger(older.parent / "machine")
    ledger.check_receipt(ledger.receipt(KEY), KEY)
    before = ledger.receipt(KEY)
    train(ledger, 2)
    ledger.check_receipt(before, KEY)
    assert ledger.receipt(KEY).count > before.count


def test_state_and_witness_put_back_together_are_found_out(older: Path) -> None:
    ledger = open_ledger(older.parent / "machine")
    train(ledger, 2)
    seen = ledger.receipt(KEY)
    ledger.close()
    restored = put_back(older)  # opens: the witness was put back as well
    with pytest.raises(LedgerError, match=r"rolled back, together with its witness.*backup"):
        restored.check_receipt(seen, KEY)
    train(restored, 2, "another model")  # as many rows, with another history
    train(restored, 3)
    assert restored.receipt(KEY).count >= seen.count
    with pytest.raises(LedgerError, match=r"history was rewritten.*backup"):
        restored.check_receipt(seen, KEY)


def test_a_ledger_begun_anew_is_not_the_one_that_was_seen(older: Path, tmp_path: Path) -> None:
    seen = open_ledger(older.parent / "machine").receipt(KEY)
    with pytest.raises(LedgerError, match=r"another ledger of this site.*backup"):
        new_ledger(tmp_path / "new").check_receipt(seen, KEY)


def test_a_receipt_hides_the_hash_of_the_entry(older: Path) -> None:
    """The hash depends on patients' data; without the secret nobody can test a guess at it."""
    ledger = open_ledger(older.parent / "machine")
    receipt = ledger.receipt(KEY)
    assert ledger.book.head.hash not in receipt.model_dump_json()
    assert ledger.receipt(b"another secret").tag != receipt.tag
    with pytest.raises(LedgerError, match="secret was replaced"):
        ledger.check_receipt(receipt, b"another secret")
