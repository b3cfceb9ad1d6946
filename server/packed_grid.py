"""The grid of a deployment: every message travels packed (`medfusion.transport.packing`)."""

import logging
from collections.abc import Iterable

from flwr.app import Message

from medfusion.transport.packing import from_bytes, pack, packed, to_bytes
from server.passing_grid import PassingGrid

log = logging.getLogger("medfusion.server")


class PackedGrid(PassingGrid):
    """Packs what is pushed and unpacks what is pulled.

    A reply that cannot be unpacked is passed on as it came: whoever reads it refuses it, by the
    name of its site.
    """

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pack and push; what goes to several nodes is packed once."""
        messages = list(messages)
        contents = {id(message.content): message.content for message in messages}
        packs = {key: pack(to_bytes(content)) for key, content in contents.items()}
        return self._grid.push_messages(
            [
                Message(
                    packs[id(message.content)],
                    message.metadata.dst_node_id,
                    message.metadata.message_type,
                    ttl=message.metadata.ttl,
                    group_id=message.metadata.group_id,
                )
                for message in messages
            ]
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull and unpack."""
        return [_unpacked(message) for message in self._grid.pull_messages(message_ids)]


def _unpacked(message: Message) -> Message:
    data = packed(message.content) if message.has_content() else None
    if data is not None:
        try:
            message.content = from_bytes(data)
        except Exception as error:  # bytes from outside can break a reader in any way
            log.warning("a reply that is packed wrongly (%s)", type(error).__name__)
    return message
