"""Where the link keeps a message until it is dealt with: whatever dies, it is not lost.

The coordinator gives a message out once. Its state here is told by the files that are there:

=============  ============================================================
``claimed``    claimed from the coordinator; content not fetched yet
``message``    here whole; the Node may be at work on it
``reply``      answered; the coordinator may not have all of the reply yet
=============  ============================================================
"""

import json
import logging
from pathlib import Path

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as MessageProto
from google.protobuf.message import DecodeError

from medfusion.atomic_files import make_folder, write_atomically, write_json

log = logging.getLogger("medfusion.link")


class Spool:
    """A folder of the link's own.

    A damaged file counts as none: the coordinator asks again or goes on without this site.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder, mode=0o700)
        self._node = folder / "node.json"
        self._claimed = folder / "claimed"
        self._message = folder / "message"
        self._reply = folder / "reply"

    @property
    def node_id(self) -> int:
        """What the coordinator called this node last; 0 if it never did."""
        try:
            return int(json.loads(self._node.read_text(encoding="utf-8"))["node_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @node_id.setter
    def node_id(self, value: int) -> None:
        if value != self.node_id:
            write_json(self._node, {"schema": 1, "node_id": value}, durable=True)

    @property
    def claimed(self) -> PullMessagesResponse | None:
        """The message that was claimed last, if its content is still to be fetched."""
        try:
            found = PullMessagesResponse.FromString(self._claimed.read_bytes())
        except (FileNotFoundError, DecodeError):
            return None
        return found if found.messages_list else None

    @property
    def busy(self) -> bool:
        """Whether a message is to be answered, or a reply to be sent."""
        return self._message.exists() or self._reply.exists()

    @property
    def message(self) -> Message | None:
        """The message that is to be answered."""
        return _read(self._message)

    @property
    def reply(self) -> Message | None:
        """The reply that is to be sent."""
        return _read(self._reply)

    def keep_claim(self, claimed: PullMessagesResponse) -> None:
        """Keep what was claimed."""
        write_atomically(self._claimed, claimed.SerializeToString(), durable=True)

    def keep_message(self, message: Message) -> None:
        """Keep a whole message in the place of its claim."""
        _write(self._message, message)
        self._claimed.unlink(missing_ok=True)

    def keep_reply(self, reply: Message) -> None:
        """Keep a reply in the place of its message."""
        _write(self._reply, reply)
        self._message.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget the message: it is dealt with."""
        for path in (self._claimed, self._message, self._reply):
            path.unlink(missing_ok=True)


def _write(path: Path, message: Message) -> None:
    write_atomically(path, message_to_proto(message).SerializeToString(), durable=True)


def _read(path: Path) -> Message | None:
    try:
        proto = MessageProto.FromString(path.read_bytes())
        return message_from_proto(proto) if proto.HasField("metadata") else None
    except FileNotFoundError:
        return None
    except OSError:
        raise  # the file may be whole
    except Exception as error:  # whatever the bytes of a damaged file lead to
        log.error("%s is damaged (%s)", path.name, type(error).__name__)
        path.unlink(missing_ok=True)
        return None
