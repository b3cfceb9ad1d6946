"""The lasting keys of other sites, pinned when they are first seen.

The coordinator passes the keys on. It could put its own in a site's place the first time: from
then on another key of the same name is refused. It could invent further sites: hospitals that have
compared the keys in ``peers.json`` by another channel, or have written down there those that
``medfusion site doctor`` told each of them, write ``"closed": true`` there, and from then on no new
name is let in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.node.state_files import read_state_file
from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import FederationError

PEERS = "peers.json"


def pin_peers(path: Path, seen: Mapping[str, str], *, keep: bool) -> None:
    """Compare keys by site with those that are pinned.

    Parameters
    ----------
    keep
        Whether new ones are pinned from now on.

    Raises
    ------
    FederationError
        If a site comes with another key or a new one after the file was closed, or as `read_peers`
        does.
    """
    known, closed = read_peers(path)
    for name, key in seen.items():
        if known.get(name, key) != key:
            raise FederationError(
                f"site {name!r} comes with another key than before: refused. If it has a new one "
                "on purpose, confirm that by another channel, then remove it from peers.json in "
                "the state folder"
            )
    if new := {name: key for name, key in seen.items() if name not in known}:
        if closed:
            raise FederationError(
                f"site {', '.join(sorted(new))}: not among the sites of peers.json, which this "
                "hospital has closed: refused"
            )
        if keep:
            make_folder(path.parent)
            kept = dict(sorted((known | new).items()))
            write_json(path, {"schema": 1, "peers": kept}, durable=True)


def read_peers(path: Path) -> tuple[dict[str, str], bool]:
    """Return the pinned keys by site, and whether no others are let in.

    Raises
    ------
    FederationError
        If the file is damaged.
    """
    found = read_state_file(
        path,
        _known_and_closed,
        damaged=f"{path}: expected the keys of other sites, found a damaged file; restore it from "
        "a backup",
    )
    return found or ({}, False)


def _known_and_closed(kept: Any) -> tuple[dict[str, str], bool]:
    known = {str(name): str(key) for name, key in kept["peers"].items()}
    return known, kept.get("closed") is True
