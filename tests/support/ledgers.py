"""Small ledgers for tests, and a process that writes to one until it is killed."""

import hashlib
import sys
from pathlib import Path

from medfusion.privacy.accounting import NoisedSums
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.plan_costs import Paid, PlanCosts
from medfusion.privacy.renyi_filter import Gate

GATE = Gate(max_epsilon=8.0, delta=1e-5)
SITE = "north"


def costs(*, noise: float = 50.0, rounds: int = 3, evaluations: int = 1) -> PlanCosts:
    """Return what a plan of ``rounds`` of two full-batch steps pays for."""
    return PlanCosts(
        {
            "select": Paid(1, NoisedSums(noise, 1.0, 1)),
            "train": Paid(rounds, NoisedSums(noise, 1.0, 2)),
            "evaluate": Paid(evaluations, NoisedSums(noise, 1.0, 1)),
        }
    )


def open_ledger(root: Path, *, site: str = SITE) -> Ledger:
    """Open the ledger in ``root / "state"``, witnessed in ``root / "witnesses"``."""
    return Ledger(root / "state", site=site, witnesses=root / "witnesses")


def new_ledger(root: Path) -> Ledger:
    """Begin a ledger there."""
    (root / "state").mkdir(parents=True, exist_ok=True)
    return Ledger.create(root / "state", site=SITE, witnesses=root / "witnesses")


def reply_of(number: int) -> bytes:
    """Return what a round replies, some pages long."""
    return hashlib.sha256(str(number).encode()).digest() * 500


def release_for_ever(root: Path) -> None:
    """Release round after round, and tell each that has left on standard output."""
    ledger = open_ledger(root)
    run = ledger.reserve(
        "run", settings_sha256="s", costs=costs(noise=10_000.0, rounds=10**6), gate=GATE
    )
    number = len(ledger.book.slots)
    while True:
        number += 1
        reply = ledger.release(
            run, "train", number, f"content {number}", lambda number=number: reply_of(number)
        )
        print(number, hashlib.sha256(reply).hexdigest(), flush=True)


if __name__ == "__main__":
    release_for_ever(Path(sys.argv[1]))
