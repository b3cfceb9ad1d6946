"""The link's steps: each may be the last one before a kill; no message is lost or sent twice."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse

from client.link.fleet import LostMessageError, RunOverError
from client.link.link import Link
from client.link.spool import Spool
from medfusion.atomic_files import write_json

NODE = 7


class CutError(grpc.RpcError):
    """The connection is gone, or the coordinator fails."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "cut"


def message(number: int) -> Message:
    content = RecordDict({"c": ConfigRecord({"number": number})})
    metadata = Metadata(
        run_id=5,
        message_id=f"m{number}",
        src_node_id=1,
        dst_node_id=NODE,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1e9,
        message_type="query.describe" if number == 0 else "train",
    )
    return make_message(metadata, content)


@dataclass
class FakeFleet:
    """Gives messages out once, as the coordinator does; fails where it is told to."""

    waiting: list[Message] = field(default_factory=list)
    fail: dict[str, Exception] = field(default_factory=dict)
    sent: list[Message] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)
    left: int = 0
    node_id: int = 0
    whole: dict[str, Message] = field(default_factory=dict)
    link: Any = None

    def _may_fail(self, call: str) -> None:
        if call in self.fail:
            raise self.fail.pop(call)

    def join(self, known_as: int) -> None:
        self._may_fail("join")
        self.joined.append(known_as)
        self.node_id = NODE

    def beat(self) -> bool:
        return True

    def leave(self) -> None:
        self.left += 1

    def next_message(self) -> PullMessagesResponse | None:
        if not self.waiting:
            self.link.end()  # nothing is left to do
            return None
        found = self.waiting.pop(0)
        self.whole[found.metadata.message_id] = found
        return PullMessagesResponse(messages_list=[message_to_proto(found)])

    def content_of(self, claimed: PullMessagesResponse) -> Message:
        self._may_fail("content_of")
        return self.whole[claimed.messages_list[0].metadata.message_id]

    def confirm(self, message: Message) -> None:
        self._may_fail("confirm")
        self.confirmed.append(message.metadata.message_id)

    def send(self, reply: Message) -> None:
        self._may_fail("send")
        self.sent.append(reply)


class FakeNode:
    """Echoes; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.fail: list[Exception] = []

    def __call__(self, kind: str, content: RecordDict) -> RecordDict:
        number = content.config_records["c"]["number"]
        assert isinstance(number, int)
        self.asked.append((kind, number))
        if self.fail:
            raise self.fail.pop(0)
        return content


def serve(fleet: FakeFleet, node: FakeNode, folder: Path) -> None:
    """Run a link on a spool until there is nothing left to do."""
    link = Link(fleet, Spool(folder), node, status=folder / "status.json")
    fleet.link = link
    link.run()


def answered(fleet: FakeFleet) -> list[str]:
    return [reply.metadata.reply_to_message_id for reply in fleet.sent]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.link.link._FIRST_RETRY", 0.01)


def test_messages_are_answered_in_turn_and_forgotten(tmp_path: Path) -> None:
    fleet, node = FakeFleet([message(0), message(1)]), FakeNode()
    serve(fleet, node, tmp_path)
    assert node.asked == [("describe", 0), ("train", 1)]
    assert answered(fleet) == ["m0", "m1"]
    assert fleet.sent[1].content.config_records["c"]["number"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"node.json", "status.json"}
    assert json.loads((tmp_path / "status.json").read_text())["messages"] >= 0
    assert fleet.left == 1


@pytest.mark.parametrize("step", ["keep_claim", "keep_message", "confirm", "keep_reply", "send"])
def test_a_link_that_is_killed_after_any_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fleet, node = FakeFleet([message(1)]), FakeNode()
    owner = FakeFleet if step in ("confirm", "send") else Spool
    done = getattr(owner, step)

    def then_die(self: Any, *arguments: Any) -> None:
        done(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, then_die)
        with pytest.raises(KeyboardInterrupt):
            serve(fleet, node, tmp_path)
    serve(fleet, node, tmp_path)
    assert set(answered(fleet)) == {"m1"}
    # A reply that was sent, and whose sending was not noted, is sent again: the coordinator
    # knows it by its content. The Node is asked once.
    assert len(fleet.sent) == (2 if step == "send" else 1)
    assert len(node.asked) == 1
    assert fleet.joined[1] == NODE


@pytest.mark.parametrize("call", ["join", "content_of", "confirm", "send"])
def test_a_cut_connection_is_tried_again(tmp_path: Path, call: str) -> None:
    fleet, node = FakeFleet([message(1)], {call: CutError()}), FakeNode()
    serve(fleet, node, tmp_path)
    assert answered(fleet) == ["m1"]
    assert len(node.asked) == 1


@pytest.mark.parametrize("call", ["content_of", "confirm", "send"])
def test_the_message_of_a_run_that_has_ended_is_dropped(tmp_path: Path, call: str) -> None:
    fleet = FakeFleet([message(1), message(2)], {call: RunOverError("over")})
    serve(fleet, FakeNode(), tmp_path)
    assert answered(fleet) == ["m2"]


def test_a_message_whose_content_is_lost_is_answered_with_an_error(tmp_path: Path) -> None:
    fleet, node = FakeFleet([message(1)], {"content_of": LostMessageError("a part")}), FakeNode()
    serve(fleet, node, tmp_path)
    assert fleet.sent[0].has_error()
    assert "a part" in fleet.sent[0].error.reason
    assert not node.asked


def test_a_node_that_dies_is_asked_again_and_in_the_end_given_up(tmp_path: Path) -> None:
    fleet, node = FakeFleet([message(1), message(2)]), FakeNode()
    node.fail = [ConnectionError("died")] * 7  # five for the first message, two for the second
    serve(fleet, node, tmp_path)
    assert [reply.has_error() for reply in fleet.sent] == [True, False]
    assert "died" in fleet.sent[0].error.reason
    assert [number for _, number in node.asked] == [1] * 5 + [2] * 3


@pytest.mark.parametrize("name", ["claimed", "message", "reply", "node.json"])
def test_a_damaged_spool_file_counts_as_none(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "node.json", {"schema": 1, "node_id": NODE}, durable=False)
    (tmp_path / name).write_bytes(b"\xff\x00 damaged")
    fleet = FakeFleet([message(1)])
    serve(fleet, FakeNode(), tmp_path)
    assert answered(fleet) == ["m1"]


def test_a_link_that_ends_keeps_the_message_of_a_node_that_is_gone(tmp_path: Path) -> None:
    fleet, node = FakeFleet([message(1)]), FakeNode()

    def gone(kind: str, content: RecordDict) -> RecordDict:
        fleet.link.end()
        raise ConnectionError("gone")

    link = Link(fleet, Spool(tmp_path), gone, status=tmp_path / "status.json")
    fleet.link = link
    link.run()
    assert not fleet.sent
    serve(fleet, node, tmp_path)
    assert answered(fleet) == ["m1"]
    assert not fleet.sent[0].has_error()


@pytest.mark.parametrize(
    ("code", "kept"), [(grpc.StatusCode.INTERNAL, False), (grpc.StatusCode.UNAVAILABLE, True)]
)
def test_a_message_that_the_coordinator_fails_at_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode, kept: bool
) -> None:
    monkeypatch.setattr("client.link.link._LAST_RETRY", 0.01)
    fleet, node = FakeFleet([message(1), message(2)]), FakeNode()
    genuine, failures = fleet.send, []

    def send(reply: Message) -> None:
        if reply.metadata.reply_to_message_id == "m1" and len(failures) < 20:
            failures.append(1)
            raise CutError(code)
        genuine(reply)

    monkeypatch.setattr(fleet, "send", send)
    serve(fleet, node, tmp_path)
    assert answered(fleet) == (["m1", "m2"] if kept else ["m2"])
