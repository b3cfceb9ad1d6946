"""Messages that are lost between coordinator and Node, and sites that are only slow."""

import time

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from replies import make_reply

from medfusion.errors import FederationError
from medfusion.transport.requests import MESSAGE_TYPES, reply_with
from server.exchange import broadcast, exchange, exchange_with_quorum

NAMES = {1: "east", 2: "west"}


class QueueGrid:
    """Nodes that answer their messages in order; ``fate(message)`` is answer, lose, gone or hold.

    A message on hold holds up those behind it.
    """

    def __init__(self, fate):
        self.fate = fate
        self.sent = []
        self.queues = {node: [] for node in NAMES}
        self._replies = {}

    def get_node_ids(self):
        return list(NAMES)

    def push_messages(self, messages):
        found = []
        for message in messages:
            identifier = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = identifier
            self.sent.append((message.metadata.dst_node_id, message.metadata.message_type))
            self.queues[message.metadata.dst_node_id].append(message)
            found.append(identifier)
        return found

    def pull_messages(self, identifiers):
        for queue in self.queues.values():
            while queue and (fate := self.fate(queue[0])) != "hold":
                message = queue.pop(0)
                if fate == "answer":
                    self._put(message, Message(reply_with({}), reply_to=message))
                elif fate == "gone":
                    error = Error(ErrorCode.NODE_UNAVAILABLE, "offline")
                    self._put(message, Message(error, reply_to=message))
        return [self._replies.pop(i) for i in list(identifiers) if i in self._replies]

    def _put(self, message, reply):
        self._replies[message.metadata.message_id] = reply

    def times(self, kind, node=1):
        return self.sent.count((node, MESSAGE_TYPES[kind]))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("server.exchange._ASK_AGAIN_SECONDS", 0.02)
    make_reply({}, 1)  # sets up Flower's task identity


def first(fate, kind="train", node=1):
    """Let the first message of a kind to a node meet a fate."""
    seen = []

    def of(message):
        meta = message.metadata
        if (meta.message_type, meta.dst_node_id) != (MESSAGE_TYPES[kind], node):
            return "answer"
        if message not in seen and seen:
            return "answer"
        seen.append(message)
        return fate

    return of


def ask(grid, **options):
    messages = broadcast("train", reply_with({}), NAMES)
    return exchange(grid, messages, NAMES, **({"timeout": 20.0, "patience": 0.02} | options))


def test_a_message_that_was_lost_is_sent_again():
    grid = QueueGrid(first("lose"))
    assert list(ask(grid).good) == ["east", "west"]
    assert grid.times("train") == 2
    assert grid.times("train", node=2) == 1


def test_a_site_at_work_is_not_asked_twice():
    end = time.monotonic() + 0.5
    grid = QueueGrid(lambda message: "hold" if time.monotonic() < end else "answer")
    assert list(ask(grid).good) == ["east", "west"]
    assert grid.times("train") == grid.times("train", node=2) == 1
    assert 1 <= grid.times("describe") <= 5  # fewer and fewer


def test_a_question_that_is_lost_too_is_asked_again():
    lost = iter(range(2))
    grid = QueueGrid(
        lambda m: (
            "lose" if m.metadata.dst_node_id == 1 and next(lost, None) is not None else "answer"
        )
    )
    assert list(ask(grid).good) == ["east", "west"]
    assert (grid.times("train"), grid.times("describe")) == (2, 2)


def test_a_question_to_a_site_that_is_gone_tells_nothing():
    grid = QueueGrid(
        lambda m: (
            "answer"
            if m.metadata.dst_node_id == 2
            else "gone"
            if m.metadata.message_type == MESSAGE_TYPES["describe"]
            else "lose"
        )
    )
    assert list(ask(grid, timeout=0.3).failed) == ["east"]
    assert grid.times("train") == 1


def test_nobody_is_asked_without_need():
    grid = QueueGrid(first("lose"))
    assert list(ask(grid, timeout=0.2, patience=float("inf")).failed) == ["east"]
    assert grid.times("describe") == 0


@pytest.mark.parametrize(("quorum", "asked"), [(2, 2), (1, 1)])
def test_a_site_that_was_cut_off_is_asked_again_if_the_quorum_hangs_on_it(quorum, asked):
    grid = QueueGrid(first("gone"))
    messages = broadcast("train", reply_with({}), NAMES)
    replies = exchange_with_quorum(grid, messages, NAMES, quorum=quorum, timeout=20.0)
    assert len(replies.good) == quorum
    assert grid.times("train") == asked


def test_a_site_that_stays_away_ends_the_wait_in_time():
    grid = QueueGrid(first("gone"))
    grid.get_node_ids = lambda: [2]
    messages = broadcast("train", reply_with({}), NAMES)
    begin = time.monotonic()
    replies = exchange_with_quorum(grid, messages, NAMES, quorum=2, timeout=0.3)
    assert time.monotonic() - begin < 10
    with pytest.raises(FederationError, match="offline"):
        replies.require(2)
