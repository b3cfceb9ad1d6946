"""The grid of a deployment: every message travels packed (`medfusion.transport.packing`)."""

import logging
from collections import Counter
from collections.abc import Iterable

from flwr.app import Array, Message, RecordDict

from medfusion.errors import FederationError
from medfusion.transport.packing import joined, packed, part, unpacked
from medfusion.transport.requests import error_reply
from server.passing_grid import PassingGrid

log = logging.getLogger("medfusion.server")


class PackedGrid(PassingGrid):
    """Packs what is pushed and unpacks what is pulled.

    A reply that cannot be unpacked becomes one that carries an error.
    """

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pack and push, one message after the other.

        Arrays that several messages hold, as they do the model of a round, are serialised once and
        lie at the SuperLink once; what one message holds is let go of when it has been pushed.
        """
        messages = list(messages)
        holders = Counter(
            id(record) for message in messages for record in message.content.array_records.values()
        )
        shared: dict[int, Array] = {}
        identifiers: list[str] = []
        for message in messages:
            own, parts = RecordDict(), []
            for name, record in message.content.items():
                if holders[id(record)] < 2:  # a record of settings, or of this message alone
                    own[name] = record
                    continue
                if id(record) not in shared:
                    shared[id(record)] = part(RecordDict({name: record}))
                parts.append(shared[id(record)])
            meta = message.metadata
            sent = Message(
                joined(*parts, part(own)),
                meta.dst_node_id,
                meta.message_type,
                ttl=meta.ttl,
                group_id=meta.group_id,
            )
            identifiers += self._grid.push_messages([sent])
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull and unpack."""
        return [_unpacked(message) for message in self._grid.pull_messages(message_ids)]


def _unpacked(message: Message) -> Message:
    if not message.has_content():
        return message
    try:
        content = unpacked(message.content)
    except Exception as error:  # bytes from outside can break a reader in any way
        log.warning("a reply cannot be unpacked (%s)", type(error).__name__)
        content = error_reply(FederationError("its reply cannot be unpacked"))
    if packed(content) is not None:
        content = error_reply(FederationError("its reply is packed twice"))
    message.content = content
    return message
