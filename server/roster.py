"""Who takes part: the sites behind the connected nodes, checked before a run starts."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from medfusion.config import RunConfig
from medfusion.data.task import Task
from medfusion.errors import ConfigError, FederationError, MedFusionError
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.transport.requests import (
    Request,
    SiteDescription,
    read_receipt,
    read_reply,
    request_content,
)
from server.admitted import Admitted
from server.exchange import PATIENCE_SECONDS, NoReplyError, broadcast, exchange
from server.receipts import Receipts


@dataclass
class Roster:
    """The sites of a run, and the names of those that a node stands for; in the names' order."""

    sites: dict[str, SiteDescription]
    names: dict[int, str]

    def node_of(self, name: str) -> int | None:
        """Return the node of a site; None if none has come yet."""
        return next((node for node, site in self.names.items() if site == name), None)

    def add(self, site: SiteDescription, *, node: int | None) -> None:
        """Add a site, or give one that is known another node."""
        sites = self.sites | {site.site: site}
        nodes = {name: known for known, name in self.names.items()}
        if node is not None:
            nodes[site.site] = node
        self.sites = {name: sites[name] for name in sorted(sites)}
        self.names = {nodes[name]: name for name in sorted(nodes)}

    def keep_only(self, names: Collection[str]) -> list[str]:
        """Leave out all other sites, and return their names."""
        others = sorted(self.sites.keys() - set(names))
        self.sites = {name: site for name, site in self.sites.items() if name not in others}
        self.names = {node: name for node, name in self.names.items() if name not in others}
        return others

    @property
    def nodes(self) -> list[int]:
        """Node ids in the order of the sites' names."""
        return list(self.names)


def call_roll(
    grid: Grid,
    config: RunConfig,
    task: Task,
    *,
    warn: Callable[[str], None],
    receipts: Receipts,
    admitted: Admitted,
    simulated: bool,
) -> Roster:
    """Wait for the quorum, ask every node who it is, and refuse what does not fit together.

    A node that is silent, fails or does not fit is left out, until it answers well
    (`server.latecomers`), and ``warn`` is told. In a simulation the first answer that does not fit
    ends the roll call: it is the researcher's own, to be mended at once. The ledgers' receipts go
    to ``receipts``, those of refused sites too.

    Raises
    ------
    FederationError
        If too few nodes connect or answer in time, two sites share a name, or a site's task
        differs.
    ConfigError
        If the run asks for more epsilon than a site allows.
    """
    timeout = config.server.round_timeout
    nodes = _await_nodes(grid, config.server.min_sites, timeout)

    told: list[tuple[str, Receipt]] = []

    def check(node: str, reply: Message) -> None:
        site = read_description(node, reply)
        admitted.check(int(node), site.site)
        if receipt := read_receipt(reply.content):
            told.append((site.site, receipt))
        check_site(site, config, task)

    def on_reply(node: str, seconds: float, error: MedFusionError | None) -> None:
        if error is not None and simulated and not isinstance(error, NoReplyError):
            raise type(error)(f"node {node}: {error}")
        if error is not None:
            warn(f"node {node} is left out for now: {error}")

    try:
        replies = exchange(
            grid,
            broadcast("describe", request_content(Request()), nodes),
            {node: str(node) for node in nodes},
            timeout=timeout,
            check=check,
            on_reply=on_reply,
            patience=PATIENCE_SECONDS,
        )
        replies.require(config.server.min_sites)
        found = {int(node): read_description(node, r) for node, r in replies.good.items()}
        roster = _roster(found)
    except MedFusionError:
        # Two sites may go by one name: whose a ledger is that was never seen is not known yet.
        receipts.take(told, begin=False)
        raise
    receipts.take(told)
    return roster


def _roster(found: dict[int, SiteDescription]) -> Roster:
    """Order the sites by name; two of one name are an error."""
    nodes: dict[str, int] = {}
    for node, site in found.items():
        if site.site in nodes:
            raise FederationError(
                f"expected sites of different names, found two called {site.site!r}: "
                "change [site] name in one site.toml"
            )
        nodes[site.site] = node
    ordered = sorted(nodes)
    return Roster(
        sites={name: found[nodes[name]] for name in ordered},
        names={nodes[name]: name for name in ordered},
    )


def read_description(node: str, reply: Message) -> SiteDescription:
    """Return what a node says of itself; raises `ConfigError` if that cannot be read."""
    return SiteDescription.parse(read_reply(reply.content), where=f"reply of node {node}")


def check_site(site: SiteDescription, config: RunConfig, task: Task) -> None:
    """Refuse a site that does not fit the run.

    Raises
    ------
    FederationError
        If its task differs.
    ConfigError
        If the run asks for more epsilon than it allows.
    """
    theirs = Task.parse(site.task, where=f"task of site {site.site!r}")
    if theirs.sha256 != task.sha256:
        raise FederationError(
            f"site {site.site!r}: its task differs from the run's in "
            f"{task.differing_sections(theirs)} (hash {theirs.sha256[:12]}, expected "
            f"{task.sha256[:12]}): give all sites the same task.toml"
        )
    if len(site.label_coverage) not in (0, len(task.labels.names)):
        raise ConfigError(
            f"site {site.site!r}: label_coverage: expected a share for each of the "
            f"{len(task.labels.names)} labels, found {len(site.label_coverage)}"
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
