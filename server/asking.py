"""How the run loop reaches the sites: what each request says, and exchanges under the quorum."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import Message

from medfusion.data.thresholds import Selection
from medfusion.errors import MedFusionError
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.transport.requests import Request, RunSettings, read_receipt
from server.exchange import Check, Remedy, Replies, exchange_with_quorum
from server.latecomers import Latecomers
from server.progress import RunProgress
from server.reply_checks import check_histograms
from server.roster_grid import RosterGrid
from server.run_state import Cost, RunContext


@dataclass(frozen=True)
class Asking:
    """The sites of one run, as the loop asks them.

    ``frozen_sha256`` is the digest of the weights that do not travel; ``whole`` what a site is sent
    that lacks the model which a message goes on from.
    """

    context: RunContext
    settings: RunSettings
    frozen_sha256: str
    latecomers: Latecomers
    show: RunProgress
    whole: Remedy

    def request(self, selection: Selection | None, **parts: Any) -> Request:
        """Return a request of this run; ``parts`` are its other fields."""
        return Request(
            settings=self.settings,
            signature=self.context.signature,
            frozen_sha256=self.frozen_sha256,
            selection=selection.to_json() if selection else None,
            **parts,
        )

    def connected(self) -> RosterGrid:
        """Return the grid for one call of a strategy."""
        server = self.context.config.server
        return RosterGrid(
            self.context.grid,
            self.context.roster,
            quorum=server.min_sites,
            timeout=server.round_timeout,
            look=self.latecomers.look,
        )

    def check_counts(self, shape: tuple[int, ...]) -> Check:
        """Return what refuses a site's histograms unless they are of a shape."""

        def check(name: str, reply: Message) -> None:
            patients = self.context.roster.sites[name].patients_public
            check_histograms(reply, shape, patients=patients)

        return check

    def exchange(
        self,
        messages: list[Message],
        check: Check = lambda name, reply: None,
        *,
        cost: Cost,
        number: int = 0,
    ) -> Replies:
        """Exchange messages, count their cost, and require the quorum.

        Raises
        ------
        FederationError
            If fewer sites than the quorum answer well.
        """
        start = time.monotonic()
        names, receipts = self.context.roster.names, self.context.receipts
        server = self.context.config.server
        told: list[tuple[str, Receipt]] = []

        def checked(name: str, reply: Message) -> None:
            if receipt := read_receipt(reply.content):
                told.append((name, receipt))
            check(name, reply)

        try:
            replies = exchange_with_quorum(
                self.context.grid,
                [receipts.shown_to(names[m.metadata.dst_node_id], m) for m in messages],
                names,
                quorum=server.min_sites,
                timeout=server.round_timeout,
                check=checked,
                on_reply=partial(self._replied, number),
                patience=self.context.patience,
                whole=self.whole,
            )
        finally:
            receipts.take(told)
        cost.add(Cost(time.monotonic() - start, replies.bytes_up, replies.bytes_down))
        replies.require(server.min_sites, sound_data=self.context.simulated)
        return replies

    def _replied(
        self, number: int, name: str, seconds: float, error: MedFusionError | None
    ) -> None:
        self.show.site_replied(name, round=number, seconds=seconds, error=error)
