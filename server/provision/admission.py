"""Whom the coordinator admits: join requests become entries of `nodes.json`."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from medfusion.errors import ConfigError, did_you_mean
from medfusion.federation.join import JoinRequest
from medfusion.federation.node_key import key_fingerprint
from medfusion.federation.nodes import AdmittedNode, NodeList
from server.provision.federation_file import FederationFile
from server.provision.steps import Step


def read_nodes(path: Path, *, lost_if_missing: bool) -> NodeList:
    """Read the admitted nodes; there are none before the first call.

    Raises
    ------
    ConfigError
        If the file is damaged or was lost.
    """
    if path.exists():
        return NodeList.read(path)
    if lost_if_missing:
        raise ConfigError(
            f"{path}: missing, though kits were issued; restore it from a backup, or write "
            '{"schema": 1, "nodes": {}} into it to admit anew what is in requests/'
        )
    return NodeList()


def revoke(nodes: NodeList, federation: FederationFile) -> NodeList:
    """Revoke the nodes of sites that the file marks as revoked or no longer names."""
    return NodeList(
        nodes={
            site: node.model_copy(update={"revoked": node.revoked or federation.is_revoked(site)})
            for site, node in nodes.nodes.items()
        }
    )


def requested_keys(folder: Path, nodes: NodeList, federation: FederationFile) -> dict[str, str]:
    """Return, by site, the public keys of join requests that are to be admitted.

    A request for a key that its site already has asks for nothing.

    Raises
    ------
    ConfigError
        If a request is damaged or not its sender's, is for another federation or for a site that
        is unknown or revoked, or asks for a key other than the site's or one that is another's.
    """
    keys: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        request = JoinRequest.read(path)
        node = nodes.nodes.get(request.site)
        if node is not None and node.public_key == request.public_key:
            continue
        _refuse_unless_expected(path, request, federation)
        others = {site: one.public_key for site, one in nodes.nodes.items()} | keys
        _refuse_anothers_key(path, request, others)
        if request.site in keys and keys[request.site] != request.public_key:
            raise ConfigError(
                f"{path}: another file beside it asks for another key of {request.site!r}; keep "
                "the one whose key fingerprint the hospital confirms, here "
                f"{key_fingerprint(request.public_key)}"
            )
        if node is not None:
            _refuse_unless_rejoining(path, request, federation)
        keys[request.site] = request.public_key
    return keys


def admit(nodes: NodeList, keys: Mapping[str, str], expiry: Mapping[str, datetime]) -> NodeList:
    """Admit keys, and let each node take part as long as its site's kit holds.

    Parameters
    ----------
    nodes
        Those admitted so far, with the revoked ones.
    keys
        The keys to admit, by site.
    expiry
        Until when the kits of sites that may take part hold.
    """
    held = {site: node.public_key for site, node in nodes.nodes.items()} | dict(keys)
    admitted = {
        site: AdmittedNode(public_key=held[site], expires=expires)
        for site, expires in expiry.items()
        if site in held
    }
    return NodeList(nodes=dict(sorted({**nodes.nodes, **admitted}.items())))


def steps_between(before: NodeList, after: NodeList, sites: Iterable[str]) -> list[Step]:
    """Say what became of each node, also of sites that may take part and have none yet."""
    names = sorted({*sites, *after.nodes})
    return [_step(site, before.nodes.get(site), after.nodes.get(site)) for site in names]


def _step(site: str, before: AdmittedNode | None, after: AdmittedNode | None) -> Step:
    subject = f"node of {site}"
    if after is None:
        return Step("waiting", subject, f"for join-{site}.json of the hospital in requests/")
    until = f"until {after.expires:%Y-%m-%d}"
    if after == before:
        return Step("kept", subject, "revoked" if after.revoked else until)
    if after.revoked:
        return Step("revoked", subject)
    if before is not None and before.public_key == after.public_key:
        return Step("admitted" if before.revoked else "renewed", subject, until)
    return Step("admitted", subject, f"{until}, key {key_fingerprint(after.public_key)}")


def _refuse_unless_expected(path: Path, request: JoinRequest, federation: FederationFile) -> None:
    name, sites = federation.federation.name, federation.sites
    if request.federation != name:
        raise ConfigError(
            f"{path}: asks to join the federation {request.federation!r}, expected {name!r}; "
            "remove it"
        )
    if request.site not in sites:
        raise ConfigError(
            f"{path}: asks for the site {request.site!r}, expected one that has a section "
            f"[sites.NAME]{did_you_mean(request.site, sites)}; add it or remove the file"
        )
    if sites[request.site].revoked:
        raise ConfigError(
            f"{path}: asks for the site {request.site!r}, which is revoked; remove the file, or "
            f"revoked = true of [sites.{request.site}]"
        )


def _refuse_anothers_key(path: Path, request: JoinRequest, keys: Mapping[str, str]) -> None:
    for site, key in keys.items():
        if site != request.site and key == request.public_key:
            raise ConfigError(
                f"{path}: asks for the key of the site {site!r}, expected one that only "
                f"{request.site!r} has; the hospital makes it with: medfusion site join KIT"
            )


def _refuse_unless_rejoining(path: Path, request: JoinRequest, federation: FederationFile) -> None:
    fingerprint = key_fingerprint(request.public_key)
    if federation.sites[request.site].rejoin != fingerprint:
        raise ConfigError(
            f"{path}: asks for the key {fingerprint}, but the site {request.site!r} was admitted "
            f"with another; if the hospital confirms by telephone that it lost that one and that "
            f'this is its new one, write rejoin = "{fingerprint}" below [sites.{request.site}]; '
            "else remove the file"
        )
