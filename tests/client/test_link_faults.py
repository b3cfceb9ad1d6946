"""The link among faults of its own machine: a full disk, a damaged spool, a message of nonsense."""

import errno
import json
import threading

import grpc
import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as MessageProto
from replies import make_reply

from client.link import spool as spool_module
from client.link.link import Link
from client.link.spool import Spool
from medfusion.transport.requests import reply_with

PATIENCE = 20.0


class FakeFleet:
    """Gives each of its messages out once, and takes replies."""

    node_id = 5

    def __init__(self, messages):
        self.messages = dict(enumerate(messages))
        self.waiting = list(self.messages)
        self.sent = []
        self.replied = threading.Event()

    def join(self, known_as):
        pass

    def beat(self):
        return True

    def leave(self):
        pass

    def next_message(self):
        if not self.waiting:
            return None
        claimed = PullMessagesResponse(messages_list=[MessageProto()])
        claimed.messages_list[0].metadata.run_id = self.waiting.pop(0)
        return claimed

    def content_of(self, claimed):
        found = self.messages[claimed.messages_list[0].metadata.run_id]
        if isinstance(found, Exception):
            raise found
        return found

    def confirm(self, message):
        pass

    def send(self, reply):
        self.sent.append(reply)
        if not self.waiting:
            self.replied.set()


def request(number):
    message = make_reply({"weights": [1.0]}, number)
    message.metadata.__dict__["_message_id"] = f"message {number}"
    return message


class NoContent(Exception):
    pass


@pytest.fixture
def serve(tmp_path):
    """Let a link serve until it has replied to the last message."""

    def run(messages, *, before=lambda link: None):
        fleet = FakeFleet(messages)
        link = Link(
            fleet,
            Spool(tmp_path / "spool"),
            lambda kind, content: reply_with({"kind": kind}),
            status=tmp_path / "spool" / "status.json",
        )
        before(link)
        thread = threading.Thread(target=link.run, daemon=True)
        thread.start()
        replied = fleet.replied.wait(PATIENCE)
        assert thread.is_alive()
        link.end()
        thread.join(PATIENCE)
        assert replied
        return [reply.metadata.reply_to_message_id for reply in fleet.sent]

    return run


@pytest.mark.parametrize("full", ["claimed", "message", "reply"])
def test_what_is_claimed_outlasts_a_full_disk(serve, monkeypatch, full):
    genuine, failures = spool_module.write_atomically, iter(range(2))

    def write(path, data, *, durable):
        if path.name == full and next(failures, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        genuine(path, data, durable=durable)

    monkeypatch.setattr(spool_module, "write_atomically", write)
    monkeypatch.setattr("client.link.link._FIRST_RETRY", 0.01)
    assert serve([request(1)], before=lambda link: setattr(link, "_retry", 0.01)) == ["message 1"]
    assert next(failures, None) is None


def test_the_heartbeat_outlasts_a_full_disk(serve, monkeypatch, tmp_path):
    def full(path, data, *, durable):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("client.link.link.write_json", full)
    assert serve([request(1)]) == ["message 1"]


def test_a_message_that_cannot_be_read_costs_nothing_but_itself(serve):
    assert serve([NoContent("bad"), request(2)]) == ["message 2"]


@pytest.mark.parametrize("name", ["claimed", "message", "reply"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x0a\x00", b"\x0a\x02\x08\x01" + bytes(9)])
def test_a_damaged_spool_is_left_behind(serve, tmp_path, name, content):
    Spool(tmp_path / "spool")
    (tmp_path / "spool" / name).write_bytes(content)
    assert serve([request(1)])[-1:] == ["message 1"]


def test_a_lost_connection_is_tried_again(serve, monkeypatch):
    genuine, failures = FakeFleet.next_message, iter(range(2))

    def cut(fleet):
        if next(failures, None) is not None:
            raise Unavailable
        return genuine(fleet)

    monkeypatch.setattr(FakeFleet, "next_message", cut)
    monkeypatch.setattr("client.link.link._FIRST_RETRY", 0.01)
    assert serve([request(1)], before=lambda link: setattr(link, "_retry", 0.01)) == ["message 1"]


class Unavailable(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "gone"


def test_its_state_is_told(serve, tmp_path):
    assert serve([request(1)]) == ["message 1"]
    assert json.loads((tmp_path / "spool" / "status.json").read_text())["schema"] == 1
