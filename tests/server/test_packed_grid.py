import logging

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from medfusion.transport.packing import joined, pack, to_bytes, unpacked
from server.exchange import error_of
from server.packed_grid import PackedGrid

MODEL = ArrayRecord({"w": Array(np.arange(300_000.0))})
CONTENT = RecordDict({"arrays": MODEL, "config": ConfigRecord({"number": 7})})


class Wire:
    """Keeps what is pushed, a list for each call; gives out ``replies``."""

    def __init__(self):
        self.pushes, self.replies = [], []

    @property
    def pushed(self):
        return [message for push in self.pushes for message in push]

    def push_messages(self, messages):
        self.pushes.append(list(messages))
        return [str(len(self.pushes))]

    def pull_messages(self, message_ids):
        if isinstance(self.replies, Exception):
            raise self.replies
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
    assert PackedGrid(wire).push_messages(messages) == ["1", "2", "3"]
    assert [message.metadata.dst_node_id for message in wire.pushed] == [5, 6, 7]
    assert [unpacked(message.content) for message in wire.pushed] == [CONTENT, CONTENT, other]
    head = wire.pushed[0].metadata
    assert (head.message_type, head.ttl, head.group_id) == ("train", 60.0, "3")
    assert messages[0].content is CONTENT  # to be sent again, if it is lost


def test_one_model_travels_once_however_many_messages_hold_it_beside_what_is_their_own(wire):
    own = [RecordDict({**CONTENT, "receipt": ConfigRecord({"count": k})}) for k in range(4)]
    PackedGrid(wire).push_messages([Message(content, k, "train") for k, content in enumerate(own)])
    assert [unpacked(message.content) for message in wire.pushed] == own
    objects = {}
    for message in wire.pushed:
        objects |= get_all_nested_objects(message.content)
    size = sum(len(found.deflate()) for found in objects.values())
    assert size < 1.1 * len(to_bytes(CONTENT))


def test_a_record_of_two_names_keeps_both(wire):
    both = RecordDict({"arrays": MODEL, "ema": MODEL})
    other = RecordDict({"control": MODEL})
    contents = [both, other, both]
    PackedGrid(wire).push_messages([Message(each, 5, "train") for each in contents])
    assert [unpacked(message.content) for message in wire.pushed] == contents


def test_messages_go_out_one_after_the_other(wire):
    """A packed model that is a message's own is not held until all others are packed."""
    PackedGrid(wire).push_messages([Message(CONTENT, node, "train") for node in (5, 6)])
    assert [len(push) for push in wire.pushes] == [1, 1]


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


def test_a_reply_that_flower_cannot_read_ends_no_run(wire, caplog):
    """The error of an array record whose body is a list, by Flower 1.39."""
    caplog.set_level(logging.WARNING)
    wire.replies = AttributeError("'list' object has no attribute 'values'")
    assert PackedGrid(wire).pull_messages(["m"]) == []
    assert "one of them is damaged" in caplog.text


def test_a_line_that_fails_is_not_taken_for_a_damaged_reply(wire):
    wire.replies = httpx.ConnectError("refused")
    with pytest.raises(httpx.ConnectError):
        PackedGrid(wire).pull_messages(["m"])


REPEATED = Array(dtype="uint8", shape=(3,), stype="medfusion.recorddict", data=b"abc")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (joined(REPEATED, REPEATED), "its reply cannot be unpacked"),
        (pack(b"\xff\xff"), "its reply cannot be unpacked"),
        (pack(to_bytes(pack(to_bytes(CONTENT)))), "its reply is packed twice"),
    ],
)
def test_a_reply_that_is_packed_wrongly_counts_as_failed_wherever_nobody_reads_it(
    wire, content, told
):
    wire.replies = [Message(content, reply_to=Message(CONTENT, 5, "query.deliver"))]
    (reply,) = PackedGrid(wire).pull_messages(["m"])
    error = error_of("ward", reply, lambda name, reply: None)
    assert str(error) == told
