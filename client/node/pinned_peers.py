"""The lasting keys of other sites, pinned when they first sign in a round.

The coordinator passes the keys on. It could put its own in a site's place the first time: from
then on another key of the same name is refused. It could invent further sites: hospitals that have
compared the keys in ``peers.json`` by another channel, or have written down there those that
``medfusion site doctor`` told each of them, write ``"closed": true`` there, and from then on no new
name is let in. ``"told"`` holds keys that the coordinator told of sites of a run that have not
signed yet: they bind nobody in other runs.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from client.node.state_files import read_state_file
from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import FederationError
from medfusion.federation.signatures import PublicKey
from medfusion.options import FileSchema, Options

PEERS = "peers.json"


class Peers(Options):
    """Keys by site: of those that signed, and of those only told; ``closed`` to any others."""

    file_schema: FileSchema = 1
    signed: dict[str, PublicKey] = Field(default_factory=dict, alias="peers")
    told: dict[str, PublicKey] = Field(default_factory=dict)
    closed: bool = Field(default=False, strict=True)


def check_peers_known(peers: Peers, signing: Mapping[str, str]) -> None:
    """Compare the keys of sites that sign with the pinned ones.

    Raises
    ------
    FederationError
        If a site comes with another key, or a new one after the file was closed.
    """
    for name, key in signing.items():
        if peers.signed.get(name, key) != key:
            raise FederationError(
                f"site {name!r} comes with another key than before: refused. If it has a new one "
                "on purpose, confirm that by another channel, then remove it from peers.json in "
                "the state folder"
            )
    if peers.closed and (new := sorted(signing.keys() - peers.signed.keys())):
        raise FederationError(
            f"site {', '.join(new)}: not among the sites of peers.json, which this hospital has "
            "closed: refused"
        )


def pin_peers(path: Path, signing: Mapping[str, str], *, told: Mapping[str, str]) -> None:
    """Keep the keys of sites that signed, and beside them what was ``told`` of others.

    A closed file stays as it is.
    """
    peers = read_peers(path)
    signed = dict(sorted((peers.signed | dict(signing)).items()))
    others = {n: key for n, key in sorted((peers.told | dict(told)).items()) if n not in signed}
    if peers.closed or (signed, others) == (peers.signed, peers.told):
        return
    make_folder(path.parent)
    write_json(path, {"schema": 1, "peers": signed, "told": others}, durable=True)


def read_peers(path: Path) -> Peers:
    """Return what a site knows of others.

    Raises
    ------
    FederationError
        If the file is damaged.
    """
    found = read_state_file(
        path,
        lambda kept: Peers.parse(kept, where=str(path)),
        damaged=f'{path}: expected {{"schema": 1, "peers": {{NAME: KEY of 44 characters, ...}}, '
        '"closed": true or false}, found another form; correct it, or restore it from a backup',
    )
    return found or Peers()
