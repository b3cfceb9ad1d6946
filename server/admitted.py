"""Which site the coordinator admitted as which node: a hospital cannot call itself another one."""

import json
from pathlib import Path

from medfusion.errors import FederationError

FILE_NAME = "registered.json"


class Admitted:
    """Names by node, as `server.deployment.node_registry` keeps them.

    Parameters
    ----------
    path
        The file, read anew each time: hospitals join while a run goes on. None in a simulation,
        whose sites are what they say.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def check(self, node: int, site: str) -> None:
        """Refuse a node that goes by a name which is not its own; raises `FederationError`."""
        if self._path is None:
            return
        sites = json.loads(self._path.read_text(encoding="utf-8"))["sites"]
        names = [name for name, entry in sites.items() if int(entry["node_id"]) == node]
        if names != [site]:
            raise FederationError(
                f"node {node} calls itself {site!r} and was admitted as {', '.join(names)!r}: let "
                "[site] name in its site.toml be the name in its kit"
            )
