"""Lets in the nodes that the kit's ``nodes.json`` admits, and shuts out all others."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfusion.atomic_files import write_atomically, write_json
from medfusion.federation.kit import ServerKit
from medfusion.federation.nodes import NodeList
from server.admitted import FILE_NAME
from server.deployment.flower import Flower

log = logging.getLogger("medfusion.server")


class NodeRegistry:
    """Keeps Flower's list of nodes equal to the kit's.

    Flower tells no names or keys of the nodes that it knows, so what was registered is kept in a
    file: site, node id and key.

    Parameters
    ----------
    folder
        Where that file is; written to.
    """

    def __init__(self, kit: ServerKit, flower: Flower, folder: Path) -> None:
        self._kit = kit
        self._flower = flower
        self._file = folder / FILE_NAME
        self._key_file = folder / "node.pub"

    @property
    def registered(self) -> dict[str, int]:
        """Flower's number of each node that may take part now, by site."""
        return {site: int(entry["node_id"]) for site, entry in self._read().items()}

    def bring_up_to_date(self) -> None:
        """Shut out what is revoked, expired or has another key now; then let in what is new.

        Raises
        ------
        ConfigError
            If ``nodes.json`` is missing or damaged; nothing changes.
        FederationError
            If the server does not answer; what was done so far is kept.
        """
        now = datetime.now(UTC)
        nodes = NodeList.read(self._kit.nodes).nodes
        admitted = {
            site: node.public_key for site, node in nodes.items() if node.may_take_part(now)
        }
        kept = self._read()
        if {site: entry["public_key"] for site, entry in kept.items()} == admitted:
            return
        there = self._flower.nodes().keys()
        kept = {site: entry for site, entry in kept.items() if entry["node_id"] in there}
        out = [site for site, entry in kept.items() if admitted.get(site) != entry["public_key"]]
        for site in out:
            log.info("site %s: shut out", site)
            del kept[site]
        # Also what a call that was killed had let in or shut out without noting it.
        for node_id in there - {entry["node_id"] for entry in kept.values()}:
            self._flower.unregister(node_id)
        self._write(kept)
        new = admitted.keys() - kept.keys()
        for site in sorted(new):
            write_atomically(self._key_file, f"{admitted[site]}\n", durable=False)
            node_id = self._flower.register(self._key_file, site)
            kept[site] = {"node_id": node_id, "public_key": admitted[site]}
            self._write(kept)
            log.info("site %s: let in as node %d", site, node_id)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))["sites"]
            return {
                site: {**entry, "node_id": int(entry["node_id"])} for site, entry in found.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # all are shut out and let in anew

    def _write(self, sites: dict[str, dict[str, Any]]) -> None:
        write_json(self._file, {"schema": 1, "sites": sites}, durable=True)
