"""Claims messages, has the Node answer them, sends the replies; goes on where it was killed."""

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.task_identity import TaskIdentity

from client.app import Handler
from client.link.fleet import Fleet, LostMessageError, RunOverError
from client.link.spool import Spool
from medfusion.atomic_files import write_json

log = logging.getLogger("medfusion.link")

# Between two looks for messages: a tenth of the time since the last one, within these seconds.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_FIRST_RETRY, _LAST_RETRY = 1.0, 15.0  # seconds between two tries to reach the coordinator
_BEAT_SECONDS = 10.0
_TRIES = 5  # times that a message is put to a Node that dies of it


class Link:
    """One site's link.

    Parameters
    ----------
    answer
        Puts a request to the Node; raises `ConnectionError` if there is no answer.
    status
        File that tells how the link is.
    """

    def __init__(self, fleet: Fleet, spool: Spool, answer: Handler, *, status: Path) -> None:
        self._fleet = fleet
        self._spool = spool
        self._answer = answer
        self._status = status
        self._ended = threading.Event()
        self._connected = False
        self._contact: float | None = None
        self._messages = 0
        self._tries = 0
        self._unkept: PullMessagesResponse | None = None  # given out once: not to be forgotten
        self._retry = _FIRST_RETRY
        self._refusals = 0

    def run(self) -> None:
        """Serve until `end` is called."""
        beating = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        beating.start()
        while not self._ended.is_set():
            try:
                self._fleet.join(self._spool.node_id)
                self._spool.node_id = self._fleet.node_id
                self._joined()
                self._serve()
            except grpc.RpcError as error:
                self._lost(error)
                self._count_refusal(error)
                self._put_off()
            except OSError as error:
                log.error("the spool cannot be written (%s)", error.strerror)
                self._put_off()
        if self._connected and not self.busy:
            self._leave()

    def _count_refusal(self, error: grpc.RpcError) -> None:
        """Drop a message that a coordinator which is there and knows this node cannot take.

        So it is when the coordinator lost its database: it knows nothing of the run.
        """
        if error.code() in _NOT_OF_THE_MESSAGE or not (self.busy or self._spool.claimed):
            self._refusals = 0
            return
        self._refusals += 1
        if self._refusals >= _TRIES:
            log.warning("the coordinator does not take the message's reply; it is dropped")
            self._spool.clear()
            self._refusals = 0

    def _put_off(self) -> None:
        self._ended.wait(self._retry)
        self._retry = min(2 * self._retry, _LAST_RETRY)

    def end(self) -> None:
        """Let `run` return; a message under way stays in the spool."""
        self._ended.set()

    @property
    def busy(self) -> bool:
        """Whether a message waits for its answer, or its answer to be sent."""
        return self._spool.busy

    def _serve(self) -> None:
        last = time.monotonic()
        while not self._ended.is_set():
            worked = self._safe_step()
            self._retry = _FIRST_RETRY  # only now: what joins may still fail at every message
            if worked:
                last = time.monotonic()
                continue
            idle = time.monotonic() - last
            self._ended.wait(min(max(idle / 10, _SHORTEST_PAUSE), _LONGEST_PAUSE))

    def _safe_step(self) -> bool:
        """Take a step; a message that cannot be dealt with is dropped, not met again for ever."""
        try:
            return self._step()
        except (grpc.RpcError, OSError):
            raise
        except Exception as error:  # whatever bytes from outside, or a damaged spool, lead to
            log.error("a message that cannot be read is dropped (%s)", type(error).__name__)
            self._spool.clear()
            return True

    def _step(self) -> bool:
        """Bring the message one step further, or look for one; return whether there was any."""
        spool, fleet = self._spool, self._fleet
        try:
            if reply := spool.reply:
                fleet.send(reply)
                spool.clear()
                self._messages += 1
            elif message := spool.message:
                if answer := self._reply_to(message):
                    spool.keep_reply(answer)
            elif claimed := spool.claimed:
                message = self._whole(claimed)
                if message is not None:
                    spool.keep_message(message)
                    fleet.confirm(message)
            elif claimed := self._unkept or fleet.next_message():
                self._unkept = claimed
                spool.keep_claim(claimed)
                self._unkept = None
            else:
                self._contact = time.time()
                return False
        except (RunOverError, LostMessageError) as error:
            log.warning("%s; its message is dropped", error)
            spool.clear()
        self._refusals = 0
        self._contact = time.time()
        return True

    def _whole(self, claimed: PullMessagesResponse) -> Message | None:
        """Return a claimed message with its content, or None: then an error is the reply."""
        try:
            return self._fleet.content_of(claimed)
        except LostMessageError as error:
            head = message_from_proto(claimed.messages_list[0])
            self._spool.keep_reply(self._error(head, str(error)))
            return None

    def _reply_to(self, message: Message) -> Message | None:
        """Return the Node's answer, or an error; None if the link ends before there is one."""
        kind = message.metadata.message_type.removeprefix("query.")
        self._tries += 1
        try:
            content = self._answer(kind, message.content)
        except ConnectionError as error:
            log.warning("%r: %s (try %d of %d)", kind, error, self._tries, _TRIES)
            if self._ended.is_set():
                return None
            if self._tries < _TRIES:
                return self._reply_to(message)
            self._tries = 0
            return self._error(message, str(error))
        self._tries = 0
        self._identify(message)
        return Message(content, reply_to=message)

    def _error(self, message: Message, reason: str) -> Message:
        self._identify(message)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def _identify(self, message: Message) -> None:
        """Say whose messages these are: Flower keeps it for the whole process."""
        TaskIdentity.run_id = message.metadata.run_id
        TaskIdentity.node_id = message.metadata.dst_node_id
        TaskIdentity.task_id = 0

    def _joined(self) -> None:
        if not self._connected:
            log.info("connected to the coordinator as node %d", self._fleet.node_id)
        self._connected, self._contact = True, time.time()
        self._tell()

    def _lost(self, error: grpc.RpcError) -> None:
        if self._connected or self._contact is None:
            log.warning("no connection: %s", _in_words(error))
        self._connected = False
        self._contact = self._contact or 0.0
        self._tell()

    def _leave(self) -> None:
        try:
            self._fleet.leave()
        except grpc.RpcError:
            log.info("left without telling the coordinator, which is out of reach")

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            if self._fleet.node_id:
                try:
                    if self._fleet.beat():
                        self._contact = time.time()
                except grpc.RpcError:
                    pass  # the loop finds out, and says so
            self._tell()

    def _tell(self) -> None:
        state = {
            "schema": 1,
            "connected": self._connected,
            "last_contact": self._contact or None,
            "messages": self._messages,
            "busy": self.busy,
        }
        with suppress(OSError):  # a full disk is no reason to fall silent
            write_json(self._status, state, durable=False)


_TOLD: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "the coordinator is out of reach",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the coordinator does not answer in time",
    grpc.StatusCode.UNAUTHENTICATED: (
        "the coordinator does not take this node's signature: its key was not admitted or was "
        "revoked, or a clock is wrong"
    ),
    grpc.StatusCode.INTERNAL: "the coordinator's server met an error of its own",
}
_NOT_OF_THE_MESSAGE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
)


def _in_words(error: grpc.RpcError) -> str:
    code: grpc.StatusCode = error.code()
    told = _TOLD.get(code, "the coordinator refuses: this node's key may not be admitted (yet)")
    return f"{told} ({code.name}: {error.details()})"
