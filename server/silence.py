"""Finding out whether a site that is silent is at work, or has lost its message."""

import time
from collections.abc import Iterable, Mapping

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from medfusion.transport.requests import MESSAGE_TYPES, Request, request_content

GONE = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)


class Silence:
    """Asks silent sites who they are, behind the request that they have not answered.

    Flower gives a message out once, and a link may die before it has it on its disk. A link deals
    with one message at a time, in their order: an answer to the later question says that the
    earlier request is lost, while a site that is at work answers neither.

    Parameters
    ----------
    patience
        Seconds of silence before the first question; twice as many before each further one.
    """

    def __init__(self, grid: Grid, patience: float) -> None:
        self._grid = grid
        self._pause = patience
        self._due = time.monotonic() + patience
        self._asked: dict[str, str] = {}  # the request in doubt, by the question

    @property
    def questions(self) -> list[str]:
        """The ids of the questions, to be looked for together with the requests."""
        return list(self._asked)

    def ask(self, pending: Mapping[str, Message]) -> None:
        """Ask about the requests that are pending, if it is time."""
        if time.monotonic() < self._due or not pending:
            return
        self._pause *= 2
        self._due = time.monotonic() + self._pause
        content = request_content(Request())
        kind = MESSAGE_TYPES["describe"]
        questions = [Message(content, m.metadata.dst_node_id, kind) for m in pending.values()]
        self._asked |= dict(zip(self._grid.push_messages(questions), pending, strict=True))

    def lost(self, arrived: Iterable[Message]) -> list[str]:
        """Return the requests that are lost if they have not been answered by now."""
        answers = [r for r in arrived if r.metadata.reply_to_message_id in self._asked]
        told = {reply.metadata.reply_to_message_id: reply for reply in answers}
        doubted = {self._asked.pop(question): reply for question, reply in told.items()}
        return [
            request
            for request, reply in doubted.items()
            if not (reply.has_error() and reply.error.code in GONE)
        ]
