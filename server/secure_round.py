"""The coordinator's part in secure aggregation (`medfusion.transport.secagg`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from medfusion.atomic_files import write_json
from medfusion.errors import FederationError
from medfusion.transport.fixed_point import FixedPoint
from medfusion.transport.requests import (
    ARRAYS,
    MASKED,
    MESSAGE_TYPES,
    METRICS,
    WEIGHT_KEY,
    SiteDescription,
    read_reply,
    secagg_record,
)
from medfusion.transport.secagg import Revealed, Shares, unmasked
from medfusion.transport.secagg_keys import Offer, check_offer, offers_of_one_key
from medfusion.transport.secagg_options import SecureAggregationOptions
from medfusion.transport.updates import moved_by, size_of
from server.exchange import Check, Replies
from server.reply_checks import check_masked

SURVIVORS = "survivors.json"
MEMBERS = "members.json"
T = TypeVar("T")
Exchange = Callable[[list[Message], Check], Replies]
"""Sends messages, and returns the replies that pass a check."""


def kept_members(folder: Path, run: str) -> dict[str, str] | None:
    """Return the lasting keys of a run's sites by name, as sites first held them; None before.

    They stand for good, since sites let no others in.
    """
    path = folder / MEMBERS
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return kept["members"] if kept.get("run") == run else None


@dataclass(frozen=True)
class SecureRound:
    """One round: from the strategy's training messages to the mean of the updates.

    Parameters
    ----------
    names
        Site names by node id.
    sites
        All sites of the run, by name.
    exchange
        How to reach the sites.
    folder
        The run's, where it is kept who is of it and whose sum was asked for last.
    """

    options: SecureAggregationOptions
    run: str
    number: int
    names: Mapping[int, str]
    sites: Mapping[str, SiteDescription]
    exchange: Exchange
    folder: Path

    def train(self, messages: Sequence[Message], incoming: ArrayRecord) -> tuple[Replies, Message]:
        """Return the masked replies, and one reply that carries the mean model.

        Raises
        ------
        FederationError
            If fewer sites than the threshold answer an exchange. Nothing is learned then.
        """
        asked = {self.names[message.metadata.dst_node_id]: message for message in messages}
        members = self._members()

        def read_offer(name: str, answer: dict[str, Any]) -> Offer:
            return self._read_offer(name, answer, members[name])

        offered = self._ask("offer", asked, {name: {} for name in asked}, read_offer)
        twice = offers_of_one_key(offered.values())
        for name in twice:
            del offered[name]  # all others would refuse the round
        same = FederationError("offers a key that is offered twice")
        self._require("offer", len(offered), dict.fromkeys(twice, same))
        self._keep_members(members)  # from now on sites may hold them, and let no others in
        offers = list(offered.values())
        told = {
            "offers": [offer.model_dump() for offer in offers],
            "members": members,
        }

        def read_shares(name: str, answer: dict[str, Any]) -> Shares:
            return _read_shares(name, answer, among=offered.keys())

        shares = self._ask("share", asked, dict.fromkeys(offered, told), read_shares)
        replies = self._train(asked, incoming, shares)
        masked = {
            name: reply.content.array_records[ARRAYS][MASKED].numpy()
            for name, reply in replies.good.items()
        }
        survivors = self._survivors(masked.keys())
        masked = {name: masked[name] for name in survivors}
        replies.good = {name: replies.good[name] for name in survivors}
        listed = {name: {"survivors": survivors} for name in survivors}
        signatures = self._ask("confirm", asked, listed, lambda name, a: str(a["signature"]))
        signed = {name: {"signatures": signatures} for name in signatures}
        revealed = self._ask("reveal", asked, signed, _read_revealed)
        total = unmasked(
            masked,
            revealed,
            offers,
            shares,
            run=self.run,
            number=self.number,
            threshold=self.options.threshold,
        )
        return replies, self._mean(total, offers, survivors, incoming)

    def _members(self) -> dict[str, str]:
        members = kept_members(self.folder, self.run)
        return members or {name: site.signer for name, site in self.sites.items()}

    def _keep_members(self, members: Mapping[str, str]) -> None:
        if kept_members(self.folder, self.run) is None:
            content = {"schema": 1, "run": self.run, "members": members}
            write_json(self.folder / MEMBERS, content, durable=True)

    def _survivors(self, answered: AbstractSet[str]) -> list[str]:
        """Return whose sum is asked for: for good, since sites help with one sum of a round."""
        path = self.folder / SURVIVORS
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        of = {"schema": 1, "run": self.run, "round": self.number}
        if kept.items() >= of.items():
            return [name for name in kept["survivors"] if name in answered]
        survivors = sorted(answered)
        write_json(path, {**of, "survivors": survivors}, durable=True)
        return survivors

    def _read_offer(self, name: str, answer: dict[str, Any], signer: str) -> Offer:
        offer = Offer.parse(answer["offer"], where=f"offer of {name}")
        if offer.site != name:
            raise FederationError(f"expected keys of {name!r}, found those of another site")
        if offer.patients != self.sites[name].patients_public:
            raise FederationError(f"{name!r} offers other patients than it declared")
        # Else all others would refuse the round.
        check_offer(self.run, self.number, offer, signer)
        return offer

    def _ask(
        self,
        step: str,
        asked: Mapping[str, Message],
        told: Mapping[str, Mapping[str, Any]],
        read: Callable[[str, dict[str, Any]], T],
    ) -> dict[str, T]:
        """Send one exchange to the sites of ``told``; return what was read of their answers.

        What ``read`` refuses counts as no answer.
        """
        messages = []
        for name, parts in told.items():
            request = asked[name]
            configs = {k: v for k, v in request.content.items() if isinstance(v, ConfigRecord)}
            content = RecordDict({**configs, **secagg_record({"step": step, **parts})})
            messages.append(Message(content, request.metadata.dst_node_id, MESSAGE_TYPES["secagg"]))

        def check(name: str, reply: Message) -> None:
            read(name, read_reply(reply.content))

        replies = self.exchange(messages, check)
        self._require(step, len(replies.good), replies.failed)
        return {name: read(name, read_reply(r.content)) for name, r in replies.good.items()}

    def _train(
        self,
        asked: Mapping[str, Message],
        incoming: ArrayRecord,
        shares: Mapping[str, Shares],
    ) -> Replies:
        messages = []
        for name in shares:
            inbox = {n: sent.encrypted[name] for n, sent in shares.items() if n != name}
            told = {"inbox": inbox}
            request = asked[name]
            content = RecordDict({**request.content, **secagg_record(told)})
            messages.append(Message(content, request.metadata.dst_node_id, MESSAGE_TYPES["train"]))
        size = size_of(incoming)

        def check(name: str, reply: Message) -> None:
            check_masked(reply, size, patients=self.sites[name].patients_public)

        replies = self.exchange(messages, check)
        self._require("mask", len(replies.good), replies.failed)
        return replies

    def _require(self, step: str, answered: int, failed: Mapping[str, Exception]) -> None:
        if answered < self.options.threshold:
            why = [f"; site {name!r}: {error}" for name, error in failed.items()]
            raise FederationError(
                f"round {self.number}: {answered} sites answered the exchange {step!r} of "
                f"secure aggregation, expected {self.options.threshold}; nothing was learned"
                + "".join(why[:1])
            )

    def _mean(
        self,
        total: NDArray[np.uint32],
        offers: Sequence[Offer],
        survivors: Sequence[str],
        incoming: ArrayRecord,
    ) -> Message:
        parts = FixedPoint(self.options.update_range).decode(total, sites=len(survivors))
        answered = sum(self.sites[name].patients_public for name in survivors)
        update = parts * (sum(offer.patients for offer in offers) / answered)
        content = RecordDict(
            {ARRAYS: moved_by(incoming, update), METRICS: MetricRecord({WEIGHT_KEY: answered})}
        )
        return Message(content, 0, "train")


def _read_shares(name: str, answer: dict[str, Any], *, among: AbstractSet[str]) -> Shares:
    shares = Shares.parse(answer["shares"], where=f"shares of {name}")
    for found, expected in (
        (shares.encrypted, among - {name}),
        (shares.seeds, among),
        (shares.keys, among),
    ):
        if found.keys() != expected:
            raise FederationError(f"shares of {name}: expected some for each site of the round")
    return shares


def _read_revealed(name: str, answer: dict[str, Any]) -> Revealed:
    return Revealed.parse(answer["revealed"], where=f"shares of {name}")
