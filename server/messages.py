"""Messages made of messages."""

from flwr.app import Message, RecordDict


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message of other content for the same node; it gets an id of its own when sent."""
    meta = message.metadata
    return Message(
        content, meta.dst_node_id, meta.message_type, ttl=meta.ttl, group_id=meta.group_id
    )
