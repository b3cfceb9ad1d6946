"""What the coordinator says to this node's key and clock; asking changes nothing there.

Flower 1.39 looks at a call in this order: the signature of a timestamp, the timestamp, the node.
Two calls are refused in any case, and by what it says one learns how far they came:

- an activation with an impossible heartbeat interval: the key is looked up first, so that the
  refusal tells whether it is known, and the interval next, so that nobody is activated;
- a heartbeat of node 0, which is nobody: it tells whether the timestamp was accepted. Since a node
  may sign any time, the edges of what is accepted tell the coordinator's clock.
"""

import datetime
import math
from collections.abc import Callable
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.common.constant import (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2 as heartbeat
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from client.doctor.checks import Check, failed, ok, warning

_SECONDS = 10.0
_NOBODY = 0
_IMPOSSIBLE = 0.0  # seconds between heartbeats; Flower asks for 10 or more
_AHEAD, _BEHIND = float(SYSTEM_TIME_TOLERANCE), float(SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE)
_FARTHEST = 86400.0
_PRECISION = 0.25
_NEAR_AHEAD, _NEAR_BEHIND = _AHEAD / 2, _BEHIND / 2  # beyond which we warn


class Coordinator:
    """The Fleet API as the doctor asks it; see the module."""

    def __init__(self, address: str, *, ca: bytes, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public_key = public_key_to_bytes(key.public_key())
        self._plain = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca))
        version = RuntimeVersionClientInterceptor(component_name="SuperNode")
        self._stub: Any = FleetStub(grpc.intercept_channel(self._plain, version))

    def close(self) -> None:
        """Give the connection up."""
        self._plain.close()

    def knows_key(self, *, ahead: float) -> bool:
        """Whether this node's key is admitted; raises `grpc.RpcError` for any other answer.

        Parameters
        ----------
        ahead
            Seconds between this machine's clock and the time that is signed.
        """
        request = fleet.ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=_IMPOSSIBLE
        )
        error = self._refusal(self._stub.ActivateNode, request, ahead)
        told = FlowerError.from_json(error.details() or "")
        if told is not None and told.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return True
        if told is not None and told.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return False
        raise error

    def accepts_time(self, ahead: float) -> bool:
        """Whether a time so many seconds ahead of this clock is accepted; raises as `knows_key`."""
        request = heartbeat.SendNodeHeartbeatRequest(
            node=Node(node_id=_NOBODY), heartbeat_interval=_IMPOSSIBLE
        )
        error = self._refusal(self._stub.SendNodeHeartbeat, request, ahead)
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            if error.details() == "Invalid timestamp":
                return False
            if error.details() == "Invalid node ID":
                return True
        raise error

    def _refusal(self, method: Any, request: Any, ahead: float) -> grpc.RpcError:
        time = (now() + datetime.timedelta(seconds=ahead)).isoformat()
        signed = (
            (PUBLIC_KEY_HEADER, self._public_key),
            (TIMESTAMP_HEADER, time),
            (SIGNATURE_HEADER, sign_message(self._key, time.encode("ascii"))),
        )
        try:
            method(request, metadata=signed, timeout=_SECONDS)
        except grpc.RpcError as error:
            return error
        raise AssertionError("expected a refusal; found a Fleet API unlike that of Flower 1.39")


def clock_difference(accepts: Callable[[float], bool]) -> float | None:
    """Return by how many seconds the coordinator's clock is ahead of this one.

    Parameters
    ----------
    accepts
        Whether the coordinator accepts a time so many seconds ahead of this clock. It does from
        `_BEHIND` before to `_AHEAD` after its own.

    Returns
    -------
    float or None
        None where the clocks differ by more than a day.
    """
    step = _AHEAD + _BEHIND - 2 * _PRECISION  # narrower than what is accepted: none is missed
    tries = range(math.ceil(_FARTHEST / step) + 1)
    ahead = (sign * step * number for number in tries for sign in ((1, -1) if number else (1,)))
    low = next((seconds for seconds in ahead if accepts(seconds)), None)
    if low is None:
        return None
    high = low + _AHEAD + _BEHIND + _PRECISION
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return (low + high) / 2 - _AHEAD


def check_clock(coordinator: Coordinator) -> tuple[float, Check]:
    """Return by how much the coordinator's clock is ahead, 0 if not known, and what that means."""
    try:
        ahead = clock_difference(coordinator.accepts_time)
    except grpc.RpcError as error:
        return 0.0, failed("clock", f"not measured: {told(error)}", "mend what is told above")
    remedy = "synchronise both clocks (timedatectl set-ntp true); the coordinator's may be wrong"
    if ahead is None:
        return 0.0, failed("clock", "differs from the coordinator's by more than a day", remedy)
    behind = "behind" if ahead > 0 else "ahead of"
    found = f"{abs(ahead):.1f} s {behind} the coordinator's"
    limits = f"it accepts {_BEHIND:.0f} s behind and {_AHEAD:.0f} s ahead"
    if not -_AHEAD < ahead < _BEHIND:
        return ahead, failed("clock", f"{found}; {limits}", remedy)
    if not -_NEAR_AHEAD < ahead < _NEAR_BEHIND:
        return ahead, warning("clock", f"{found}; {limits}", remedy)
    return ahead, ok("clock", found)


def check_admission(coordinator: Coordinator, *, ahead: float, known_as: int) -> Check:
    """Check that the coordinator knows this node's key.

    Parameters
    ----------
    ahead
        By how much the coordinator's clock is ahead: a wrong clock does not hide the answer.
    known_as
        The number that the coordinator gave to this node; 0 if it never did.
    """
    try:
        if coordinator.knows_key(ahead=ahead):
            return ok("admission", "the coordinator admits this node's key")
    except grpc.RpcError as error:
        remedy = "ask the coordinator to look at the server's log"
        return failed("admission", f"the coordinator answers {told(error)}", remedy)
    if known_as:
        return failed(
            "admission",
            f"not admitted any more: it was, as node {known_as}; the key was revoked or replaced, "
            "or its time is over",
            "ask the coordinator; `medfusion status` there tells which",
        )
    return failed(
        "admission",
        "not admitted: the coordinator's server does not know this node's key",
        "send join-SITE.json; the coordinator puts it into requests/, calls `medfusion provision`, "
        "and copies nodes.json to the server's kit",
    )


def told(error: grpc.RpcError) -> str:
    """Return code and text of a failed call."""
    return f"{error.code().name}: {error.details()}"
