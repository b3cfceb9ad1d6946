"""The lasting keys of other sites, pinned when they are first seen.

The coordinator passes the keys on. It could put its own in a site's place the first time, and
never later: from then on another key of the same name is refused. Hospitals that want more compare
the fingerprints in ``peers.json`` by another channel before the first run.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import FederationError


def pinned_peers(path: Path, seen: Mapping[str, str]) -> dict[str, str]:
    """Return the pinned keys by site, with those that were never seen before.

    Raises
    ------
    FederationError
        If a site comes with another key, or the file is damaged.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["peers"] if path.exists() else {}
        known = {str(name): str(key) for name, key in kept.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FederationError(
            f"{path}: expected the keys of other sites, found a damaged file; restore it from a "
            "backup"
        ) from None
    for name, key in seen.items():
        if known.get(name, key) != key:
            raise FederationError(
                f"site {name!r} comes with another key than before: refused. If it has a new one "
                "on purpose, confirm that by another channel, then remove it from peers.json in "
                "the state folder"
            )
    if new := {name: key for name, key in seen.items() if name not in known}:
        known |= new
        make_folder(path.parent)
        write_json(path, {"schema": 1, "peers": dict(sorted(known.items()))}, durable=True)
    return known
