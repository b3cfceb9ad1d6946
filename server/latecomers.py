"""Sites that come, or come back, after the roll call."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.app import Message

from medfusion.errors import ConfigError, FederationError, MedFusionError
from medfusion.transport.requests import Request, SiteDescription, read_receipt, request_content
from server.exchange import broadcast, error_of
from server.roster import Roster, check_site, read_description
from server.run_state import RunContext

_ASK_AGAIN_SECONDS = 60.0  # a node that did not answer


class Latecomers:
    """Asks nodes that no roll call has checked who they are, and waits for none of them.

    One that answers well takes part from then on; one that does not is asked again at the next
    look. With privacy of whole sites (``server.client_dp``) nobody is let in, and into masked
    rounds (``server.secure_aggregation``) only who was there before: plan and threshold count the
    sites that began.

    Parameters
    ----------
    warn
        Is told of who comes and who is refused, once for each reason.
    """

    def __init__(self, run: RunContext, warn: Callable[[str], None]) -> None:
        self._run = run
        self._warn = warn
        self._asked: dict[str, tuple[int, float]] = {}  # node and time by the message that asks
        self._told: dict[int, str] = {}
        self._closed = run.config.server.client_dp is not None
        self._masked = run.config.server.secure_aggregation is not None

    def look(self) -> None:
        """Let in who has answered meanwhile; ask who is there and unknown."""
        if self._closed:
            return
        grid = self._run.grid
        connected = set(grid.get_node_ids())
        for reply in list(grid.pull_messages(list(self._asked))) if self._asked else []:
            node, _ = self._asked.pop(reply.metadata.reply_to_message_id)
            check = partial(self._admit, node=node, connected=connected)
            if error := error_of(str(node), reply, check):
                self._tell(node, f"node {node} takes no part: {error}")
        now = time.monotonic()
        waiting = {node for node, at in self._asked.values() if now - at < _ASK_AGAIN_SECONDS}
        unknown = sorted(connected - self._run.roster.names.keys() - waiting)
        if unknown:
            messages = broadcast("describe", request_content(Request()), unknown)
            for identifier, node in zip(grid.push_messages(messages), unknown, strict=True):
                self._asked[identifier] = (node, now)

    def _admit(self, name: str, reply: Message, *, node: int, connected: set[int]) -> None:
        """Let a site in; raises `MedFusionError` if it does not fit."""
        run = self._run
        site = read_description(name, reply)
        run.admitted.check(node, site.site)
        receipt = read_receipt(reply.content)
        told = [(site.site, receipt)] if receipt else []
        try:
            check_site(site, run.config, run.task)
            if run.roster.node_of(site.site) in connected:
                raise FederationError(f"a site called {site.site!r} takes part already")
            if self._masked and site.site not in run.roster.sites:
                raise FederationError("masked rounds are of the sites that began")
            check_same(site, run.roster.sites.get(site.site))
        except MedFusionError:
            run.receipts.take(told, begin=False)
            raise
        run.receipts.take(told)
        for warning in run.plan_for(site):
            self._warn(f"site {site.site}: {warning}")
        run.roster.add(site, node=node)
        self._tell(node, f"site {site.site} takes part from now on")

    def _tell(self, node: int, text: str) -> None:
        if self._told.get(node) != text:
            self._told[node] = text
            self._warn(text)


def check_same(site: SiteDescription, known: SiteDescription | None) -> None:
    """Refuse a site that says other things of itself than before in this run.

    Raises
    ------
    ConfigError
    """
    if known is not None and _facts(site) != _facts(known):
        raise ConfigError(
            f"site {site.site!r} declares {_facts(site)}, expected {_facts(known)} as before in "
            "this run; put its site.toml back, or submit a new run"
        )


def facts_of(roster: Roster) -> dict[str, dict[str, Any]]:
    """Return what a checkpoint keeps of the sites; `recall_sites` reads it."""
    return {name: site.model_dump(exclude={"site", "task"}) for name, site in roster.sites.items()}


def recall_sites(run: RunContext, kept: dict[str, dict[str, Any]]) -> None:
    """Bring the sites of a checkpoint to the roster: those that are away now may come back.

    Raises
    ------
    ConfigError
        If a site says other things of itself than before.
    """
    for name, facts in kept.items():
        said = {**facts, "site": name, "task": run.task.to_json()}
        before = SiteDescription.parse(said, where=f"site {name!r} in the checkpoint")
        if name in run.roster.sites:
            check_same(run.roster.sites[name], before)
        else:
            run.plan_for(before)
            run.roster.add(before, node=None)


def _facts(site: SiteDescription) -> dict[str, Any]:
    return site.model_dump(exclude={"site", "task", "signer"})
