"""The hospital's machine put back to an older copy, in the middle of a run."""

import shutil

import pytest
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto
from node_asker import NodeAsker
from tabular_cohort import write_ward

from medfusion.errors import FederationError
from medfusion.transport.requests import (
    CONFIG,
    RECEIPT,
    ROUND_KEY,
    Request,
    read_error,
    read_receipt,
    receipt_record,
    request_content,
)

RUN = ("privacy.enabled=true", "training.steps=1", "privacy.target_epsilon=4")


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("ward"), sites=("north",)).parent


def ask(asker, number, *, receipt=None, kind="train"):
    request = Request(settings=asker.settings)
    content = request_content(request, asker.record)
    content[CONFIG][ROUND_KEY] = number
    if receipt is not None:
        content[RECEIPT] = receipt_record(receipt)
    return asker.node.handle(kind, content)


@pytest.mark.parametrize("simulated", [False, True])
def test_a_machine_that_was_put_back_is_refused_at_its_next_request(
    ward, tmp_path, caplog, simulated
):
    state, backup = tmp_path / "state", tmp_path / "backup"
    asker = NodeAsker(ward, state, *RUN, simulated=simulated)
    first = read_receipt(ask(asker, 1))
    asker.node._ledger.close()
    shutil.copytree(state, backup)
    asker = NodeAsker(ward, state, *RUN, simulated=simulated)
    second = read_receipt(ask(asker, 2, receipt=first))
    assert second.uuid == first.uuid
    assert second.count > first.count
    asker.node._ledger.close()

    for path in backup.rglob("*"):  # the witness is among them
        if path.is_file():
            shutil.copy(path, state / path.relative_to(backup))
    asker = NodeAsker(ward, state, *RUN, simulated=simulated)
    for kind in ("select", "train", "evaluate"):
        error = read_error(ask(asker, 2, receipt=second, kind=kind))
        assert isinstance(error, FederationError)
        assert ("rolled back" in str(error)) is simulated  # else it is for the Node's log
        assert str(state) not in str(error) or simulated
    assert "rolled back, together with its witness" in caplog.text
    assert "backup" in caplog.text
    assert read_error(ask(asker, 2, receipt=first)) is None  # a round that was lost is not refused


def test_a_stored_reply_is_sent_again_as_it_was(ward, tmp_path):
    def stored(reply):
        parts = {name: record for name, record in reply.items() if name != RECEIPT}
        return recorddict_to_proto(RecordDict(parts)).SerializeToString()

    asker = NodeAsker(ward, tmp_path / "state", *RUN)
    first = ask(asker, 1)
    ask(asker, 2)
    again = ask(asker, 1, receipt=read_receipt(first))
    assert stored(again) == stored(first)
    assert read_receipt(again).count > read_receipt(first).count


def test_a_receipt_that_is_none_is_refused(ward, tmp_path):
    asker = NodeAsker(ward, tmp_path / "state", *RUN)
    content = request_content(Request(settings=asker.settings), asker.record)
    content[RECEIPT] = receipt_record(asker.node._ledger.receipt(b"secret"))
    content[RECEIPT]["tag"] = "x"
    assert "receipt" in str(read_error(asker.node.handle("train", content)))
