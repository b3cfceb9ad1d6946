"""A Node inside a simulation: called directly, with a secret that the run's seed gives."""

import hashlib
from pathlib import Path

from flwr.clientapp import ClientApp

from client.app import relay_app
from client.node.node import Node
from client.node.state import NodeState
from medfusion.data.site_data import SiteData


def simulated_secret(seed: int, site: str) -> bytes:
    """Return a reproducible stand-in for a site's secret; it protects nobody."""
    return hashlib.sha256(f"simulated secret/{seed}/{site}".encode()).digest()


def node_app(data: SiteData, state: Path, secret: bytes | None) -> ClientApp:
    """Return the relay app wired straight to a Node.

    Without a secret the state folder's own is used, and the site's policy holds in full.
    """
    node_state = NodeState(state)
    own = node_state.secret() if secret is None else secret
    node = Node(data, node_state, own, simulated=secret is not None)
    return relay_app(lambda context: node.handle)
