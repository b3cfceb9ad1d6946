"""The grid of a deployment: every message travels packed (`medfusion.transport.packing`)."""

import logging
from collections.abc import Iterable

from flwr.app import Message

from medfusion.transport.packing import pack, to_bytes, unpacked
from server.passing_grid import PassingGrid

log = logging.getLogger("medfusion.server")


class PackedGrid(PassingGrid):
    """Packs what is pushed and unpacks what is pulled.

    A reply that cannot be unpacked is passed on as it came: whoever reads it refuses it, by the
    name of its site. Where nobody reads what a reply holds, as after a delivery, it counts.
    """

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pack and push; content that messages share is packed once.

        Receipts (`server.receipts`) give each site's message content of its own: such messages are
        as many packed models at a time.
        """
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
    if message.has_content():
        try:
            message.content = unpacked(message.content)
        except Exception as error:  # bytes from outside can break a reader in any way
            log.warning("a reply that is packed wrongly (%s)", type(error).__name__)
    return message
