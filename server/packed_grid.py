"""The grid of a deployment: every message travels packed (`medfusion.transport.packing`)."""

import logging
from collections import Counter
from collections.abc import Iterable

from flwr.app import Array, Message, RecordDict
from google.protobuf.message import DecodeError

from medfusion.errors import FederationError
from medfusion.transport.packing import joined, packed, part, unpacked
from medfusion.transport.requests import error_reply
from server.messages import with_content
from server.passing_grid import PassingGrid

log = logging.getLogger("medfusion.server")

# What damaged content makes Flower raise while it puts a reply together, which is gone from the
# SuperLink by then; what its client raises for the line or the run is none of these.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    DecodeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class PackedGrid(PassingGrid):
    """Packs what is pushed and unpacks what is pulled.

    A reply that cannot be unpacked becomes one that carries an error. One that Flower itself cannot
    read counts as none, and so do those that came with it: `server.silence` asks for them again.
    """

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pack and push, one message after the other.

        Arrays that several messages hold, as they do the model of a round, are serialised once and
        lie at the SuperLink once; what one message holds is let go of when it has been pushed.
        """
        messages = list(messages)
        holders = Counter(
            (name, id(record))
            for message in messages
            for name, record in message.content.array_records.items()
        )
        shared: dict[tuple[str, int], Array] = {}
        identifiers: list[str] = []
        for message in messages:
            own, parts = RecordDict(), []
            for name, record in message.content.items():
                key = (name, id(record))
                if holders[key] < 2:  # a record of settings, or of this message alone
                    own[name] = record
                    continue
                if key not in shared:
                    shared[key] = part(RecordDict({name: record}))
                parts.append(shared[key])
            sent = with_content(message, joined(*parts, part(own)))
            identifiers += self._grid.push_messages([sent])
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull and unpack."""
        try:
            pulled = list(self._grid.pull_messages(message_ids))
        except _DAMAGED as error:
            log.warning("replies are lost: one of them is damaged (%s)", type(error).__name__)
            return []
        return [_unpacked(message) for message in pulled]


def _unpacked(message: Message) -> Message:
    if not message.has_content():
        return message
    try:
        message.content = unpacked(message.content)
        wrong = "its reply is packed twice" if packed(message.content) is not None else ""
    except Exception as error:  # bytes from outside can break a reader in any way
        log.warning("a reply cannot be unpacked (%s)", type(error).__name__)
        wrong = "its reply cannot be unpacked"
    if wrong:
        message.content = error_reply(FederationError(wrong))
    return message
