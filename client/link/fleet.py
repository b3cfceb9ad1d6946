"""The coordinator's Fleet API, as one site's node speaks it: gRPC with TLS, signed by its key."""

import threading
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common.constant import (
    HEARTBEAT_MAX_INTERVAL,
    HEARTBEAT_MIN_INTERVAL,
    HEARTBEAT_PATIENCE,
)
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2 as heartbeat
from flwr.proto import message_pb2 as messages
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from medfusion.errors import FederationError

_CALL_SECONDS = 30.0
_SLOWEST = 10_000.0  # bytes a second; a slower link is taken for a broken one
_PART_BYTES = 5 * 2**20  # Flower cuts arrays into parts of this size
_UPLOADS = 3  # times that a reply is sent whose parts come too slowly
_UPLOADING_SECONDS = 1.0  # between two looks for a part that the coordinator still writes
_UPLOADING_LOOKS = 120
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A link that was cut silently is noticed within a minute, and tried again every few seconds.
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class RunOverError(FederationError):
    """The run that a message belongs to has ended: nobody waits for the reply."""


class LostMessageError(FederationError):
    """The coordinator no longer has a part of a message."""


class Fleet:
    """Calls of the Fleet API.

    Every call may raise `grpc.RpcError` if the coordinator is out of reach or refuses this node.

    Parameters
    ----------
    address
        Host and port of the coordinator's Fleet API.
    ca
        The certificate that the coordinator's must be signed by, PEM.
    key
        This node's private key.
    patience
        How long this node may be silent, in seconds, before the coordinator takes it for gone.
    """

    def __init__(
        self, address: str, *, ca: bytes, key: EllipticCurvePrivateKey, patience: float
    ) -> None:
        self._public_key = public_key_to_bytes(key.public_key())
        interval = patience / HEARTBEAT_PATIENCE
        self._interval = min(max(interval, HEARTBEAT_MIN_INTERVAL), HEARTBEAT_MAX_INTERVAL)
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), _OPTIONS)
        self._channel = grpc.intercept_channel(
            channel,
            RuntimeVersionClientInterceptor(component_name="SuperNode"),
            NodeAuthClientInterceptor(key, key.public_key()),
        )
        self._stub: Any = FleetStub(self._channel)
        self._node = Node()

    @property
    def node_id(self) -> int:
        """What the coordinator calls this node; 0 before `join`."""
        return int(self._node.node_id)

    def join(self, known_as: int) -> None:
        """Report for duty, as the node that this key is known as; 0 if that is not known yet.

        A node that was here before a moment ago still counts as present, and Flower activates
        nobody twice: its heartbeat is enough.
        """
        if known_as:
            self._node = Node(node_id=known_as)
            if self.beat():
                return
        request = fleet.ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=self._interval
        )
        response = self._call(self._stub.ActivateNode, request)
        self._node = Node(node_id=response.node_id)

    def beat(self) -> bool:
        """Say that this node is there; return whether the coordinator knows it."""
        request = heartbeat.SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=self._interval
        )
        try:
            return bool(self._call(self._stub.SendNodeHeartbeat, request).success)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise

    def leave(self) -> None:
        """Say that this node goes."""
        self._call(self._stub.DeactivateNode, fleet.DeactivateNodeRequest(node_id=self.node_id))

    def close(self) -> None:
        """Give the connection up."""
        self._channel.close()

    def next_message(self) -> fleet.PullMessagesResponse | None:
        """Claim the next message, without its content; it is given out once only."""
        response = self._call(self._stub.PullMessages, fleet.PullMessagesRequest(node=self._node))
        return response if response.messages_list else None

    def content_of(self, claimed: fleet.PullMessagesResponse) -> Message:
        """Fetch the parts of a claimed message; return it whole.

        Raises
        ------
        RunOverError, LostMessageError
        """
        run_id = claimed.messages_list[0].metadata.run_id
        tree = claimed.message_object_trees[0]
        names = [part.object_id for part in iterate_object_tree(tree)]
        parts = {name: self._pull(run_id, name) for name in names}
        message: Any = inflate_object_from_contents(tree.object_id, parts)
        message.metadata.__dict__["_message_id"] = tree.object_id
        assert isinstance(message, Message)
        return message

    def confirm(self, message: Message) -> None:
        """Say that a message is here whole; the coordinator forgets its content.

        Raises
        ------
        RunOverError
        """
        request = messages.ConfirmMessageReceivedRequest(
            node=self._node,
            run_id=message.metadata.run_id,
            message_object_id=message.metadata.message_id,
        )
        self._call(self._stub.ConfirmMessageReceived, request)

    def send(self, reply: Message) -> None:
        """Send a reply; parts that the coordinator holds already are not sent again.

        Raises
        ------
        RunOverError, LostMessageError
        """
        reply.metadata.__dict__["_message_id"] = reply.object_id
        for _ in range(_UPLOADS):
            if self._push(reply):
                return
        raise LostMessageError("the coordinator gave the upload up: the line is too slow")

    def _push(self, reply: Message) -> bool:
        """Return whether all parts were taken; the coordinator waits for each one three minutes."""
        parts = get_all_nested_objects(reply)
        head = message_to_proto(remove_content_from_message(reply))
        run_id = reply.metadata.run_id
        response = self._call(
            self._stub.PushMessages,
            fleet.PushMessagesRequest(
                node=self._node,
                messages_list=[head],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            ),
        )
        for name in response.objects_to_push:
            request = messages.PushObjectRequest(
                node=self._node,
                run_id=run_id,
                object_id=name,
                object_content=parts[name].deflate(),
                session_id=response.session_id,
            )
            if not self._call(self._stub.PushObject, request).stored:
                return False
        return True

    def _pull(self, run_id: int, name: str) -> bytes:
        request = messages.PullObjectRequest(node=self._node, run_id=run_id, object_id=name)
        for _ in range(_UPLOADING_LOOKS):
            response = self._call(self._stub.PullObject, request, receives=_PART_BYTES)
            if not response.object_found:
                break
            if response.object_available:
                content: bytes = response.object_content
                return content
            threading.Event().wait(_UPLOADING_SECONDS)
        raise LostMessageError("the coordinator no longer has a part of the message")

    def _call(self, method: Any, request: Any, *, receives: int = 0) -> Any:
        """Call with a time limit that grows with what is sent, and may be received."""
        seconds = _CALL_SECONDS + (request.ByteSize() + receives) / _SLOWEST
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            told = FlowerError.from_json(error.details() or "")
            if told is not None and told.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
                raise RunOverError("the run has ended") from None
            raise
