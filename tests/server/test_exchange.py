import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from replies import make_reply

from medfusion.errors import DataError, FederationError
from medfusion.transport.requests import error_reply, reply_with
from server.exchange import NoReplyError, Replies, broadcast, content_bytes, exchange


class ScriptedGrid:
    """Answers each message with what the script holds for its node; None never answers."""

    def __init__(self, script):
        self._script = script
        self._sent = {}

    def push_messages(self, messages):
        for message in messages:
            identifier = f"m{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = identifier
            self._sent[identifier] = message
        return list(self._sent)

    def pull_messages(self, identifiers):
        found = []
        for identifier in identifiers:
            content = self._script[self._sent[identifier].metadata.dst_node_id]
            if content is not None:
                found.append(Message(content, reply_to=self._sent[identifier]))
        return found


def ask(script, timeout=0.2, **options):
    grid = ScriptedGrid(script)
    make_reply({}, 1)  # sets up Flower's task identity
    messages = broadcast("describe", reply_with({}), script)
    names = {node: f"site{node}" for node in script}
    return exchange(grid, messages, names, timeout=timeout, **options)


def test_replies_are_sorted_by_site_and_failures_kept_apart():
    replies = ask({3: reply_with({}), 1: reply_with({}), 2: error_reply(DataError("row 5"))})
    assert list(replies.good) == ["site1", "site3"]
    assert isinstance(replies.failed["site2"], DataError)
    assert {name: site["status"] for name, site in replies.sites().items()} == {
        "site1": "ok",
        "site2": "failed",
        "site3": "ok",
    }


def test_a_silent_site_fails_after_the_timeout_only():
    replies = ask({1: reply_with({}), 2: None})
    assert list(replies.good) == ["site1"]
    assert "no reply within" in str(replies.failed["site2"])


def test_replies_that_are_there_count_even_if_sending_took_all_the_time():
    replies = ask({1: reply_with({}), 2: None, 3: reply_with({})}, timeout=0.0)
    assert list(replies.good) == ["site1", "site3"]
    assert list(replies.failed) == ["site2"]


def test_the_quorum_decides_and_tells_the_first_cause():
    replies = ask({1: reply_with({}), 2: error_reply(DataError("row 5"))})
    replies.require(1)
    with pytest.raises(DataError, match=r"1 of 2 sites.*site2.*row 5"):
        replies.require(2)
    with pytest.raises(DataError, match=r"site2.*row 5"):
        replies.require(1, sound_data=True)
    with pytest.raises(FederationError, match="at least 1"):
        Replies().require(1)


def test_bytes_are_those_of_arrays_settings_and_metrics():
    record = RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros(1000, np.float32))})})
    arrays = content_bytes(record)
    assert 4000 <= arrays <= 4200
    record["config"] = ConfigRecord({"text": "é", "raw": b"123", "number": 1, "list": [1, 2]})
    assert content_bytes(record) == arrays + 2 + 3 + 8 + 16
    record["metrics"] = MetricRecord({"one": 1.0, "three": [1.0, 2.0, 3.0]})
    assert content_bytes(record) == arrays + 29 + 32


def test_what_the_check_refuses_or_cannot_read_has_failed():
    def check(name, reply):
        if name == "site1":
            raise FederationError("not this one")
        if name == "site2":
            raise KeyError("patient 4711")

    replies = ask({1: reply_with({}), 2: reply_with({}), 3: reply_with({})}, check=check)
    assert list(replies.good) == ["site3"]
    assert str(replies.failed["site1"]) == "not this one"
    assert isinstance(replies.failed["site2"], FederationError)
    assert "4711" not in str(replies.failed["site2"])


def test_a_site_that_the_relay_lost_counts_as_silent():
    grid = ScriptedGrid({1: reply_with({}), 2: reply_with({})})
    make_reply({}, 1)
    messages = broadcast("describe", reply_with({}), [1, 2])
    codes = {1: ErrorCode.NODE_UNAVAILABLE, 2: ErrorCode.CLIENT_APP_RAISED_EXCEPTION}

    def pull(identifiers):
        sent = [grid._sent[identifier] for identifier in identifiers]
        return [Message(Error(codes[m.metadata.dst_node_id]), reply_to=m) for m in sent]

    grid.pull_messages = pull
    failed = exchange(grid, messages, {1: "gone", 2: "broken"}, timeout=1).failed
    assert isinstance(failed["gone"], NoReplyError)
    assert not isinstance(failed["broken"], NoReplyError)
