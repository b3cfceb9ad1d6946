"""The relay: passes every message to the Node, in simulation and in deployment.

The Node, which the hospital installed, owns the data, the policy and the trainer; what passes
messages on decides nothing. A simulation runs the relay as a Flower app around the Node's handler;
at a hospital the link (`client.link`) calls the Node behind its Unix socket.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfusion.transport.packing import answer_as_asked, from_bytes, pack, packed, to_bytes

Handler = Callable[[str, RecordDict], RecordDict]

_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def relay_app(handler_for: Callable[[Context], Handler]) -> ClientApp:
    """Return an app that answers every request with what the Node's handler answers."""
    app = ClientApp()

    def register(decorator: Callable[..., object], kind: str) -> None:
        def serve(message: Message, context: Context) -> Message:
            answer = partial(handler_for(context), kind)
            return Message(answer_as_asked(answer, message.content), reply_to=message)

        decorator(serve)

    for kind in ("describe", "select", "deliver", "secagg"):
        register(app.query(kind), kind)
    register(app.train(), "train")
    register(app.evaluate(), "evaluate")
    return app


def node_at(socket: str, *, patience: float = 60.0) -> Handler:
    """Return a handler that calls the Node behind a Unix socket; what is packed stays so.

    A Node that is not there within ``patience`` seconds, or ends during the call, is a
    `ConnectionError`: the coordinator is told and decides, rather than waiting for an old
    request to be served.
    """

    def call(kind: str, content: RecordDict) -> RecordDict:
        whole = packed(content)
        request = to_bytes(content) if whole is None else whole
        with grpc.insecure_channel(f"unix:{socket}", options=_UNLIMITED) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=patience)
                method: Any = channel.unary_unary(f"/medfusion.Node/{kind}")
                answer: bytes = method(request)
            except grpc.FutureTimeoutError:
                raise ConnectionError("no Node listens at this site's socket") from None
            except grpc.RpcError as error:
                raise ConnectionError(f"the Node did not answer: {error.details()}") from None
        return from_bytes(answer) if whole is None else pack(answer)

    return call
