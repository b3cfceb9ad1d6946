"""All checks, in the order in which one rests on another."""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from client.doctor.checks import Check, skipped
from client.doctor.coordinator import Coordinator, check_admission, check_clock
from client.doctor.kit_checks import check_expiry, check_key, check_version_fits, read_kit
from client.doctor.machine import (
    check_disks,
    check_gpu,
    check_state,
    read_site,
    spool_and_socket,
)
from client.doctor.network import check_connection, check_name, check_tls
from client.doctor.peers import check_peers
from client.doctor.proxies import check_proxy, proxy_for
from client.link.spool import Spool
from medfusion.data.site import Site
from medfusion.federation.kit import SiteKit
from medfusion.federation.node_key import NodeKey


def examine(
    folder: Path,
    site_folder: Path | None,
    *,
    environment: Mapping[str, str] = os.environ,
    now: datetime | None = None,
) -> list[Check]:
    """Check a site's kit, the way to its coordinator, and this machine; nothing is changed.

    Parameters
    ----------
    folder
        The kit.
    site_folder
        The site folder; None leaves out what is checked of it.
    environment
        The variables that the link would have.
    now
        The time, by default the present.
    """
    now = now or datetime.now(UTC)
    kit, found = read_kit(folder)
    checks = [found]
    if kit is None:
        names = ("expiry", "version", "key", "proxy", "dns", "tcp", "tls", "clock", "admission")
        checks += [skipped(name, "needs a kit") for name in names]
    else:
        key, key_check = check_key(kit)
        checks += [check_expiry(kit, now), check_version_fits(kit), key_check]
        checks += _way(kit, key, environment, now)
    site, found = None, skipped("site", "needs --site")
    if site_folder is not None:
        site, found = read_site(site_folder, kit)
    return [*checks, found, *_machine(kit, site)]


def _way(
    kit: SiteKit, key: NodeKey | None, environment: Mapping[str, str], now: datetime
) -> list[Check]:
    """Check the way to the coordinator as far as it can be gone."""
    host, port, proxy = kit.host, kit.port, proxy_for(kit.host, environment)
    steps: tuple[Callable[[], Check], ...] = (
        lambda: check_name(host, port, proxy),
        lambda: check_connection(host, port, proxy),
        lambda: check_tls(host, port, proxy, kit.ca, now),
    )
    checks = [check_proxy(host, environment)]
    for step in steps:
        checks.append(step())
        if checks[-1].status == "failed":
            break
    names = ("dns", "tcp", "tls")[len(checks) - 1 :]
    checks += [skipped(name, f"needs {checks[-1].name}") for name in names]
    if checks[-1].status in ("failed", "skipped"):
        return [*checks, *(skipped(name, "needs tls") for name in ("clock", "admission"))]
    if key is None:
        return [*checks, *(skipped(name, "needs a key") for name in ("clock", "admission"))]
    return [*checks, *_answers(kit, key)]


def _answers(kit: SiteKit, key: NodeKey) -> list[Check]:
    coordinator = Coordinator(kit.address, ca=kit.ca.read_bytes(), key=key.private)
    try:
        ahead, clock = check_clock(coordinator)
        spool, _ = spool_and_socket(kit)
        known_as = Spool(spool).node_id if spool.is_dir() else 0
        return [clock, check_admission(coordinator, ahead=ahead, known_as=known_as)]
    finally:
        coordinator.close()


def _machine(kit: SiteKit | None, site: Site | None) -> list[Check]:
    folders = [*(spool_and_socket(kit) if kit else ()), *([site.state] if site else [])]
    disks = check_disks(folders) if folders else skipped("disk", "needs a kit or a site")
    if site is None:
        state, gpu, peers = (skipped(name, "needs a site") for name in ("state", "gpu", "peers"))
        return [state, disks, gpu, peers]
    return [check_state(site), disks, check_gpu(site), check_peers(site)]
