"""A fresh Node over a site of a cohort, asked as the coordinator would."""

from dataclasses import replace
from functools import cached_property

import numpy as np

from client.node.node import Node
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.site_data import load_site_data
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.transport.arrays import to_record
from medfusion.transport.requests import CONFIG, MU_KEY, ROUND_KEY, Request, request_content
from server.run_state import run_settings

SECRET = b"secret".ljust(32)


class NodeAsker:
    """Asks for parts of the run that ``overrides`` of the cohort's config make.

    ``usual`` overrides come before those; ``change`` edits the site's data; the Node keeps its
    state in the folder ``state``.
    """

    usual = ()

    def __init__(
        self,
        cohort,
        state,
        *overrides,
        secret=SECRET,
        simulated=True,
        change=None,
        authority=None,
    ):
        self.config = load_config(cohort / "config.toml", [*self.usual, *overrides])
        data = load_site_data(next((cohort / "sites").iterdir()))
        self.data = change(data) if change else data
        self.settings = run_settings(self.config, self.data.task)
        self.state = NodeState(state)
        ledger = self.state.ledger(self.data.name, witnesses=state / "witnesses")
        self.node = Node(
            self.data, self.state, secret, ledger, simulated=simulated, authority=authority
        )

    @cached_property
    def model(self):
        """The coordinator's model, at its initial weights."""
        return build_model(self.settings.model, self.data.task, seed=0)

    @cached_property
    def record(self):
        """What is sent of it."""
        return to_record(trainable_state(self.model))

    def ask(self, kind, *, round=1, arrays=True, settings=None, mu=None, **parts):
        """Send a request with the initial model, with other ``arrays``, or without (None)."""
        request = Request(settings=settings or self.settings, **parts)
        content = request_content(request, self.record if arrays is True else arrays)
        content[CONFIG][ROUND_KEY] = round
        if mu is not None:
            content[CONFIG][MU_KEY] = mu
        return self.node.handle(kind, content)


def without(*parts):
    """Move a site's patients out of some parts of the split."""
    left = ({0, 1, 2} - set(parts)).pop()

    def change(data):
        split = np.where(np.isin(data.split, parts), left, data.split).astype(np.int8)
        return replace(data, split=split)

    return change
