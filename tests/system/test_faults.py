"""Program after program is killed in one run, which ends as if nothing had been.

`fault_matrix.py` holds many more faults, one at a time and at three phases each.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_driver import ROUNDS, FaultyFederation

# One in each round; the last one may still have to be found out when the rounds are done.
KILLED = ("link", "node", "serverapp", "superlink")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FaultyFederation]:
    federation = FaultyFederation(tmp_path)
    try:
        federation.start()
        yield federation
    finally:
        federation.processes.stop()


def test_whatever_is_killed_no_round_is_lost_and_none_is_paid_twice(
    federation: FaultyFederation,
) -> None:
    assert len(KILLED) == ROUNDS
    simulated = federation.simulate("kills")
    federation.submit_run("kills")
    for done, program in enumerate(KILLED):
        federation.await_round("kills", done)
        federation.await_message()
        federation.kill(program)
    result = federation.result("kills", simulated, timeout=240.0)
    assert (result.status, result.why) == ("finished", ""), federation.processes.tails()
    assert result.rounds == ROUNDS
    assert result.all_ok
    assert result.charges == "once"
    assert result.model_equal
    assert result.delivered == 3
