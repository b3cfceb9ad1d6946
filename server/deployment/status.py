"""How a federation is: its sites and runs, as ``medfusion status --json`` prints it."""

from datetime import UTC, datetime
from typing import Any

from medfusion.federation.kit import ServerKit
from medfusion.federation.nodes import AdmittedNode, NodeList
from server.deployment.node_registry import NodeRegistry
from server.deployment.runs import Runs
from server.deployment.serve import flower_of


def status_of(kit: ServerKit) -> dict[str, Any]:
    """Return ``schema``, ``federation``, ``sites`` and ``runs``.

    A site's status is online, offline, waiting (admitted, and not let in yet), expired or
    revoked; ``since`` is when that began, null where it is not known.

    Raises
    ------
    FederationError
        If the server does not answer.
    """
    flower = flower_of(kit)
    told, nodes = flower.runs(), flower.nodes()
    registered = NodeRegistry(kit, flower, kit.folder / "state").registered
    runs = Runs(kit, flower)
    states = [runs.state(name, told) for name in runs.names()]
    return {
        "schema": 1,
        "federation": kit.federation,
        "sites": [
            {
                "site": site,
                "expires": node.expires.isoformat(),
                **_presence(node, nodes.get(registered.get(site, 0))),
            }
            for site, node in sorted(NodeList.read(kit.nodes).nodes.items())
        ],
        "runs": [
            {
                "run": state.name,
                "status": "running" if state.status == "crashed" else state.status,
                "round": state.round,
                "rounds": state.rounds,
                "why": state.why,
                "folder": str(runs.folder(state.name)),
            }
            for state in states
        ],
    }


def _presence(node: AdmittedNode, told: dict[str, Any] | None) -> dict[str, Any]:
    if node.revoked:
        return {"status": "revoked", "since": None}
    if not node.may_take_part(datetime.now(UTC)):
        return {"status": "expired", "since": None}
    if told is None:
        return {"status": "waiting", "since": None}
    if told["status"] == "online":
        return {"status": "online", "since": told["online-at"]}
    since = told["offline-at"]
    return {"status": "offline", "since": None if since in ("", "N/A") else since}
