"""A process that releases is killed at random instants: what has left was charged and is kept.

``LEDGER_KILLS=500 pytest tests/system/test_ledger_kill.py`` kills more often.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ledgers

KILLS = int(os.environ.get("LEDGER_KILLS", "20"))


def test_what_left_was_charged_and_is_kept(tmp_path: Path) -> None:
    ledgers.new_ledger(tmp_path).close()
    chance = random.Random(0)
    left: dict[int, str] = {}
    charged_only = 0
    for _ in range(KILLS):
        left |= _killed_after(tmp_path, chance.uniform(0.0, 0.1))
        ledger = ledgers.open_ledger(tmp_path)
        charges = {charge.slot[2]: charge for charge in ledger.book.charges.values()}
        assert left.keys() <= charges.keys()
        for number, digest in left.items():
            assert charges[number].reply_sha256 == digest
        open_ones = [charge for charge in charges.values() if charge.reply_sha256 is None]
        assert len(open_ones) <= 1
        charged_only += len(open_ones)
        for charge in open_ones:  # the same content is computed again, and paid once
            (run,) = ledger.book.reservations.values()
            number = charge.slot[2]
            reply = ledger.release(
                run, "train", number, charge.content, lambda n=number: ledgers.reply_of(n)
            )
            assert reply == ledgers.reply_of(number)
        for number in list(charges)[-2:]:
            assert ledger.stored(charges[number]) == ledgers.reply_of(number)
        assert len(ledger.book.charges) == len(charges)
        ledger.close()
    assert len(left) > KILLS
    assert charged_only  # some were killed between charge and reply


def _killed_after(root: Path, seconds: float) -> dict[int, str]:
    """Let a process release for a while past its first one; return what it told."""
    process = subprocess.Popen(
        [sys.executable, ledgers.__file__, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    lines = (first + rest).split("\n")[:-1]  # a line that was cut short told nothing
    return {int(number): digest for number, digest in map(str.split, lines)}
