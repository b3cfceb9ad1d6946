import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from medfusion.transport.packing import from_bytes, pack, packed, to_bytes
from server.packed_grid import PackedGrid

CONTENT = RecordDict({"arrays": ArrayRecord({"w": Array(np.arange(3.0))})})


class Wire:
    """Keeps what is pushed; gives out ``replies``."""

    def __init__(self):
        self.pushed, self.replies = [], []

    def push_messages(self, messages):
        self.pushed += messages
        return [str(k) for k, _ in enumerate(messages)]

    def pull_messages(self, message_ids):
        return self.replies


@pytest.fixture
def wire():
    # As Flower tells a coordinator's app.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return Wire()


def test_messages_travel_packed_to_the_nodes_they_are_for(wire):
    other = RecordDict({"config": ConfigRecord({"number": 7})})
    messages = [Message(CONTENT, node, "train", ttl=60.0, group_id="3") for node in (5, 6)]
    messages.append(Message(other, 7, "query.describe"))
    assert PackedGrid(wire).push_messages(messages) == ["0", "1", "2"]
    assert [message.metadata.dst_node_id for message in wire.pushed] == [5, 6, 7]
    assert [from_bytes(packed(m.content)) for m in wire.pushed] == [CONTENT, CONTENT, other]
    head = wire.pushed[0].metadata
    assert (head.message_type, head.ttl, head.group_id) == ("train", 60.0, "3")
    assert wire.pushed[0].content is wire.pushed[1].content  # packed once
    assert messages[0].content is CONTENT  # to be sent again, if it is lost


def test_replies_come_out_as_the_sites_made_them(wire):
    asked = Message(CONTENT, 5, "train")
    plain = RecordDict({"config": ConfigRecord({"number": 7})})
    wire.replies = [
        Message(pack(to_bytes(CONTENT)), reply_to=asked),
        Message(plain, reply_to=asked),
        Message(Error(1, "gone"), reply_to=asked),
    ]
    first, second, third = PackedGrid(wire).pull_messages(["m"])
    assert (first.content, second.content) == (CONTENT, plain)
    assert third.error.reason == "gone"


def test_a_reply_that_is_packed_wrongly_is_left_to_whoever_refuses_it(wire, caplog):
    caplog.set_level(logging.WARNING)
    wire.replies = [Message(pack(b"\xff\xff"), reply_to=Message(CONTENT, 5, "train"))]
    (reply,) = PackedGrid(wire).pull_messages(["m"])
    assert packed(reply.content) == b"\xff\xff"
    assert "packed wrongly" in caplog.text
