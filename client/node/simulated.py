"""A Node inside a simulation: called directly, with a secret that the run's seed gives."""

import hashlib
import shutil
from pathlib import Path

from flwr.clientapp import ClientApp

from client.app import relay_app
from client.node.node import Node
from client.node.state import NodeState
from medfusion.data.site_data import SiteData
from medfusion.privacy.ledger_file import LEDGER
from medfusion.privacy.ledger_witness import default_witnesses

_WITNESSES = "witnesses"


def simulated_secret(seed: int, site: str) -> bytes:
    """Return a reproducible stand-in for a site's secret; it protects nobody."""
    return hashlib.sha256(f"simulated secret/{seed}/{site}".encode()).digest()


def node_app(data: SiteData, state: Path, secret: bytes | None) -> ClientApp:
    """Return the relay app wired straight to a Node.

    Without a secret the state folder's own is used, and the site's policy holds in full.
    """
    node_state = NodeState(state)
    own = node_state.secret() if secret is None else secret
    witnesses = default_witnesses() if secret is None else state / _WITNESSES
    ledger = node_state.ledger(data.name, witnesses=witnesses)
    node = Node(data, node_state, own, ledger, simulated=secret is not None)
    return relay_app(lambda context: node.handle)


def forget_simulated(state: Path) -> None:
    """Drop the scratch ledger that a simulation left; it protects nobody."""
    if (state / _WITNESSES).exists():  # the witnesses of a site's own ledger are elsewhere
        shutil.rmtree(state / _WITNESSES)
        for path in state.glob(f"{LEDGER}*"):
            path.unlink()
