"""Who takes part: the sites behind the connected nodes, checked before a run starts."""

import time
from dataclasses import dataclass

from flwr.serverapp import Grid

from medfusion.config import RunConfig
from medfusion.data.task import Task
from medfusion.errors import ConfigError, FederationError
from medfusion.transport.requests import Request, SiteDescription, read_reply, request_content
from server.exchange import broadcast, exchange


@dataclass(frozen=True)
class Roster:
    """Node ids by site name and back, both in the order of the names."""

    sites: dict[str, SiteDescription]
    names: dict[int, str]

    @property
    def nodes(self) -> list[int]:
        """Node ids in the order of the sites' names."""
        return list(self.names)


def call_roll(grid: Grid, config: RunConfig, task: Task) -> Roster:
    """Wait for the quorum, ask every node who it is, and refuse what does not fit together.

    Raises
    ------
    FederationError
        If too few nodes connect in time, two sites share a name, or a site's task differs.
    ConfigError
        If the run asks for more epsilon than a site allows.
    """
    nodes = _await_nodes(grid, config.server.min_sites, config.server.round_timeout)
    replies = exchange(
        grid,
        broadcast("describe", request_content(Request()), nodes),
        {node: str(node) for node in nodes},
        timeout=config.server.round_timeout,
    )
    replies.require(len(nodes))
    found: dict[str, tuple[int, SiteDescription]] = {}
    for node, reply in replies.good.items():
        site = SiteDescription.parse(read_reply(reply.content), where=f"reply of node {node}")
        if site.site in found:
            raise FederationError(
                f"expected sites of different names, found two called {site.site!r}: "
                "change [site] name in one site.toml"
            )
        _check_site(site, config, task)
        found[site.site] = (int(node), site)
    ordered = sorted(found)
    return Roster(
        sites={name: found[name][1] for name in ordered},
        names={found[name][0]: name for name in ordered},
    )


def _check_site(site: SiteDescription, config: RunConfig, task: Task) -> None:
    theirs = Task.parse(site.task, where=f"task of site {site.site!r}")
    if theirs.sha256 != task.sha256:
        differing = [key for key, value in task.to_json().items() if theirs.to_json()[key] != value]
        raise FederationError(
            f"site {site.site!r}: its task differs from the run's in "
            f"{', '.join(f'[{key}]' for key in differing)} (hash {theirs.sha256[:12]}, expected "
            f"{task.sha256[:12]}): give all sites the same task.toml"
        )
    if config.privacy.enabled and config.privacy.target_epsilon > site.max_epsilon:
        raise ConfigError(
            f"privacy.target_epsilon = {config.privacy.target_epsilon}: site {site.site!r} allows "
            f"at most {site.max_epsilon}; ask for {site.max_epsilon} or less"
        )


def _await_nodes(grid: Grid, quorum: int, timeout: float) -> list[int]:
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < quorum:
        if time.monotonic() > deadline:
            raise FederationError(
                f"expected at least {quorum} sites (server.min_sites), found {len(nodes)}"
            )
        time.sleep(1.0)
    return nodes
