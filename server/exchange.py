"""Sends requests to sites and gathers their replies, by name and in a fixed order."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from medfusion.errors import (
    ConfigError,
    DataError,
    FederationError,
    MedFusionError,
    StaleModelError,
    WaitingError,
)
from medfusion.transport.requests import MESSAGE_TYPES, RequestKind, read_error
from server.messages import with_content
from server.silence import GONE, Silence

log = logging.getLogger("medfusion.server")

# Between two looks for replies: a tenth of the time waited so far, within these seconds. Each look
# is work for the server, which the replies have to wait for.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 1.0

_ASK_AGAIN_SECONDS = 5.0  # until a site is asked again whose people have not approved the run
PATIENCE_SECONDS = 60.0  # of a deployment's coordinator with a site that is silent


class NoReplyError(FederationError):
    """A site has not answered: it took too long, or is no longer connected."""


@dataclass
class Replies:
    """What came back: good replies and failures, each by site name, sorted by name."""

    good: dict[str, Message] = field(default_factory=dict)
    failed: dict[str, MedFusionError] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0

    def require(self, quorum: int, *, sound_data: bool = False) -> None:
        """Raise the first failure's error if fewer than ``quorum`` sites answered well.

        With ``sound_data``, wrong data at one site stop the run whatever the quorum.
        """
        for name, error in self.failed.items():
            if sound_data and isinstance(error, (ConfigError, DataError)):
                raise type(error)(f"site {name!r}: {error}")
        if len(self.good) >= quorum:
            return
        for name, error in self.failed.items():
            raise type(error)(
                f"{len(self.good)} of {len(self.good) + len(self.failed)} sites answered, "
                f"expected at least {quorum}; site {name!r}: {error}"
            )
        raise FederationError(f"expected at least {quorum} sites, found {len(self.good)}")

    @property
    def waiting(self) -> list[str]:
        """Names of the failed sites that wait for their people to approve the run."""
        return [name for name, error in self.failed.items() if isinstance(error, WaitingError)]

    @property
    def gone(self) -> list[str]:
        """Names of the failed sites that did not answer; each may come back."""
        return [name for name, error in self.failed.items() if isinstance(error, NoReplyError)]

    def sites(self) -> dict[str, dict[str, object]]:
        """Status (ok, waiting, failed) and seconds per site, for ``rounds.jsonl``."""
        status = dict.fromkeys(self.good, "ok") | dict.fromkeys(self.waiting, "waiting")
        return {
            name: {
                "status": status.get(name, "failed"),
                "seconds": round(self.seconds[name], 4),
            }
            for name in sorted(self.seconds)
        }

    def followed_by(self, later: "Replies") -> "Replies":
        """Return what is known once some sites, asked again, answered ``later``."""
        good = self.good | later.good
        failed = {name: e for name, e in (self.failed | later.failed).items() if name not in good}
        return Replies(
            good={name: good[name] for name in sorted(good)},
            failed={name: failed[name] for name in sorted(failed)},
            seconds=self.seconds | later.seconds,
            bytes_down=self.bytes_down + later.bytes_down,
            bytes_up=self.bytes_up + later.bytes_up,
        )


OnReply = Callable[[str, float, MedFusionError | None], None]
Check = Callable[[str, Message], None]
Remedy = Callable[[Message], Message | None]
"""Returns the message with the whole model, for a site that lacks the one before; or None."""


def broadcast(kind: RequestKind, content: RecordDict, nodes: Iterable[int]) -> list[Message]:
    """Return one message of the same content for each node."""
    return [Message(content, node, MESSAGE_TYPES[kind]) for node in nodes]


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    names: Mapping[int, str],
    *,
    timeout: float,
    check: Check = lambda name, reply: None,
    on_reply: OnReply = lambda name, seconds, error: None,
    patience: float = math.inf,
    whole: Remedy = lambda message: None,
) -> Replies:
    """Send messages and wait for their replies, at most ``timeout`` seconds.

    A site that does not answer in time, answers with an error or with what ``check`` refuses
    is among the failed ones. The last look comes after the timeout, so that a reply which is
    there counts however long the sending took.

    Parameters
    ----------
    names
        The sites' names by node id.
    check
        Raises on a reply (of the site named) that is not to be used.
    on_reply
        Is told of each site's name, seconds and error; what it raises ends the exchange.
    patience
        Seconds of silence after which a site is asked whether it has lost its message; it gets
        the message again if so. Sound only where a site answers its messages in their order.
    whole
        What to send a site that holds no model which its message goes on from.
    """
    start = time.monotonic()
    replies = Replies(bytes_down=sum(content_bytes(message.content) for message in messages))
    pending = dict(zip(grid.push_messages(messages), messages, strict=True))
    silence = Silence(grid, patience)
    good: dict[str, Message] = {}
    late = False
    while pending and not late:
        looked = time.monotonic()
        late = looked - start >= timeout
        arrived = list(grid.pull_messages([*pending, *silence.questions]))
        lost = silence.lost(arrived)
        for reply in arrived:
            request = pending.pop(reply.metadata.reply_to_message_id, None)
            if request is None:  # the answer to a question
                continue
            name = _name(request, names)
            seconds = time.monotonic() - start
            if not reply.has_error():
                replies.bytes_up += content_bytes(reply.content)
            error = error_of(name, reply, check)
            if isinstance(error, StaleModelError) and (fuller := whole(request)) is not None:
                replies.bytes_down += content_bytes(fuller.content)
                pending |= zip(grid.push_messages([fuller]), [fuller], strict=True)
                continue
            if error is None:
                good[name] = reply
            else:
                replies.failed[name] = error
            replies.seconds[name] = seconds
            on_reply(name, seconds, error)
        for identifier in pending.keys() & set(lost):
            again = _anew(pending.pop(identifier))
            pending |= zip(grid.push_messages([again]), [again], strict=True)
            log.warning("site %s had lost its message; it is asked again", _name(again, names))
        silence.ask(pending)
        now = time.monotonic()
        pause = min(max((now - start) / 10, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        if not (arrived or late) and now - looked < pause:  # a grid may have waited for us
            time.sleep(pause - (now - looked))
    for name in (_name(request, names) for request in pending.values()):
        silent = NoReplyError(f"no reply within {timeout:.0f} s")
        replies.failed[name] = silent
        replies.seconds[name] = timeout
        on_reply(name, timeout, silent)
    replies.good = {name: good[name] for name in sorted(good)}
    replies.failed = {name: replies.failed[name] for name in sorted(replies.failed)}
    return replies


def exchange_with_quorum(
    grid: Grid,
    messages: Sequence[Message],
    names: Mapping[int, str],
    *,
    quorum: int,
    timeout: float,
    check: Check = lambda name, reply: None,
    on_reply: OnReply = lambda name, seconds, error: None,
    patience: float = math.inf,
    whole: Remedy = lambda message: None,
) -> Replies:
    """Exchange messages; while the quorum hangs on some sites, ask them again.

    These are sites that wait for approval, and sites that were cut off and have come back: what
    they had answered meanwhile is lost, but a Node answers the same request with the same reply.
    They are asked again for at most ``timeout`` seconds, as long as they can make up the quorum;
    one that is approved meanwhile has the whole ``timeout`` to answer. With the quorum there, they
    sit this exchange out. Other parameters are those of `exchange`.
    """
    end = time.monotonic() + timeout
    asked = {names[message.metadata.dst_node_id]: message for message in messages}
    ask = partial(
        exchange,
        grid,
        names=names,
        timeout=timeout,
        check=check,
        on_reply=on_reply,
        patience=patience,
        whole=whole,
    )
    replies = ask(messages)
    while len(replies.good) < quorum <= len(replies.good) + len(replies.waiting + replies.gone):
        left = end - time.monotonic()
        if left <= 0:
            break
        time.sleep(min(_ASK_AGAIN_SECONDS, left))
        present = set(grid.get_node_ids()) if replies.gone else set()
        back = [name for name in replies.gone if asked[name].metadata.dst_node_id in present]
        again = [_anew(asked[name]) for name in (*replies.waiting, *back)]
        replies = replies.followed_by(ask(again))
    return replies


def _name(message: Message, names: Mapping[int, str]) -> str:
    node = message.metadata.dst_node_id
    return names.get(node, str(node))


def _anew(message: Message) -> Message:
    """Return a message of the same content: one that was sent has its id for good."""
    return with_content(message, message.content)


def content_bytes(content: RecordDict) -> int:
    """Bytes of arrays, settings and metrics in a message, without the envelope."""
    arrays = sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    settings = [v for record in content.config_records.values() for v in record.values()]
    metrics = [v for record in content.metric_records.values() for v in record.values()]
    return arrays + sum(_value_bytes(value) for value in (*settings, *metrics))


def _value_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_value_bytes, value))
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8


def error_of(name: str, reply: Message, check: Check) -> MedFusionError | None:
    """Return what is wrong with a reply; whatever a reply holds, it raises nothing."""
    if reply.has_error():
        cause = reply.error.reason or reply.error.code
        kind = NoReplyError if reply.error.code in GONE else FederationError
        return kind(f"the relay failed ({cause})")
    try:
        error = read_error(reply.content)
        if error is None:
            check(name, reply)
    except MedFusionError as refusal:
        return refusal
    except Exception as malformed:  # bytes from outside can break a reader in any way
        return FederationError(f"its reply cannot be read ({type(malformed).__name__})")
    return error
