"""Flower's own Fleet API, in this process: TLS and node keys as in a deployment."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import (
    NodeAuthServerInterceptor,
)
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.cli.flower_superlink import _run_fleet_api_grpc_rere
from flwr.superlink.federation import NoOpFederationManager

from medfusion.federation.kit import ServerKit, SiteKit
from medfusion.federation.node_key import NodeKey

OWNER = "owner"


@contextmanager
def fleet_server(kit: ServerKit) -> Iterator[Any]:
    """Serve hospitals at the kit's port; give Flower's state."""
    objects = ObjectStoreFactory()
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects)
    server = _run_fleet_api_grpc_rere(
        address=f"127.0.0.1:{kit.port}",
        state_factory=states,
        objectstore_factory=objects,
        enable_supernode_auth=True,
        certificates=(
            kit.ca.read_bytes(),
            kit.server_certificate.read_bytes(),
            kit.server_key.read_bytes(),
        ),
        interceptors=[NodeAuthServerInterceptor(states)],
    )
    try:
        yield states.state()
    finally:
        server.stop(0).wait()


def public_key(kit: SiteKit) -> bytes:
    """Return a site's public key as Flower keeps it."""
    return public_key_to_bytes(NodeKey.read(kit.node_key).private.public_key())


def free_port() -> int:
    """Return a port of the loopback that nothing listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
