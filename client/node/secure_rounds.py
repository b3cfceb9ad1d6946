"""A site's part in secure aggregation, exchange by exchange (`medfusion.transport.secagg`).

Keys and shares live in memory: a Node that restarts within a round is lost to that round, which
goes on without it. Of each round it keeps on disk which survivors' sum it helped to learn; asked
again, after the coordinator lost the sum, it helps with the same survivors only, since two sums of
different sites differ by single updates.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, RecordDict

from client.node.pinned_peers import PEERS, check_peers_known, pin_peers, read_peers
from client.node.state_files import read_state_file
from medfusion.atomic_files import make_folder, write_json
from medfusion.digests import sha256_of
from medfusion.errors import FederationError
from medfusion.federation.signatures import SigningKey
from medfusion.privacy.keystream import derive_key, encode_info
from medfusion.transport.fixed_point import FixedPoint
from medfusion.transport.requests import ARRAYS, MASKED, METRICS, Received, RunSettings, reply_with
from medfusion.transport.secagg import MaskingSite
from medfusion.transport.secagg_requests import (
    ToldOffers,
    ToldShares,
    ToldSignatures,
    ToldSurvivors,
)
from medfusion.transport.updates import update_of


def lasting_key(site: str, secret: bytes) -> SigningKey:
    """Return the key with which a site signs in masked rounds, whichever the run."""
    seed = derive_key(secret, encode_info("secure aggregation", "signing key", site))
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))


class SecureRounds:
    """The site's part in all rounds.

    Parameters
    ----------
    site
        Its name.
    secret
        The site's; its lasting key is derived from it.
    folder
        The state folder.
    patients
        Those that the site declares.
    """

    def __init__(self, site: str, secret: bytes, folder: Path, *, patients: int) -> None:
        self._site, self._folder, self._patients = site, folder, patients
        self._answered: dict[str, RecordDict] = {}
        self._signing = lasting_key(site, secret)
        self._round: tuple[str, int] | None = None
        self._part: MaskingSite | None = None

    @property
    def signer(self) -> str:
        """The site's lasting public key."""
        return self._signing.public

    def answer(self, request: Received, settings: RunSettings) -> RecordDict:
        """Answer one exchange other than that of the masked update.

        Raises
        ------
        FederationError
            If it is out of order, or refused.
        """
        options, asked = settings.secure_aggregation, request.secagg or {}
        if options is None:
            raise FederationError("the run has no secure aggregation")
        step = asked.get("step")
        if step == "offer":
            self._round = (settings.run_id, request.round)
            self._part = MaskingSite(
                self._site,
                self._signing,
                run=settings.run_id,
                number=request.round,
                threshold=options.threshold,
                patients=self._patients,
            )
            self._answered = {}
            return reply_with({"offer": self._part.offer().model_dump()})
        part = self._current(request, settings)
        return self._once(asked, lambda: self._step(part, str(step), asked, request, settings))

    def _step(
        self,
        part: MaskingSite,
        step: str,
        asked: Mapping[str, Any],
        request: Received,
        settings: RunSettings,
    ) -> RecordDict:
        if step == "share":
            return self._share(part, ToldOffers.read(asked), settings.run_id)
        if step == "confirm":
            survivors = sorted(ToldSurvivors.read(asked).survivors)
            self._require_same(settings.run_id, request.round, survivors)
            signature = part.confirm(survivors)
            self._keep_learned(settings.run_id, request.round, survivors)
            return reply_with({"signature": signature})
        if step == "reveal":
            revealed = part.reveal(ToldSignatures.read(asked).signatures)
            return reply_with({"revealed": revealed.model_dump()})
        raise FederationError(f"unknown exchange {step!r} of secure aggregation")

    def _share(self, part: MaskingSite, told: ToldOffers, run: str) -> RecordDict:
        """Share with the sites that offer, if all of them are known; keep their keys."""
        peers = read_peers(self._folder / PEERS)
        members = self._members(run, told.members)
        names = {offer.site for offer in told.offers} - {self._site}
        signing = {name: key for name, key in members.items() if name in names}
        check_peers_known(peers, signing)
        # Of a site that is away the pinned key stands, whatever is told of it.
        members |= {name: key for name, key in peers.signed.items() if name in members}
        shares = part.share(told.offers, members)
        # Kept only once all have signed: else one bad offer would stand for good.
        others = {name: key for name, key in members.items() if name != self._site}
        pin_peers(self._folder / PEERS, signing, told=others)
        self._keep(run, members=members)
        return reply_with({"shares": shares.model_dump()})

    def _once(self, asked: Mapping[str, Any], answer: Callable[[], RecordDict]) -> RecordDict:
        """Answer; what is asked again in the same words, a reply having been lost, likewise."""
        digest = sha256_of([json.dumps(asked, sort_keys=True).encode()])
        if digest not in self._answered:
            self._answered[digest] = answer()
        return self._answered[digest]

    def masked(self, reply: RecordDict, request: Received, settings: RunSettings) -> RecordDict:
        """Return the reply to a training request with its update masked; the rest stays here.

        Raises
        ------
        FederationError
            If masking is out of order, or the update is out of range.
        """
        options, asked = settings.secure_aggregation, request.secagg or {}
        assert options is not None
        assert request.arrays is not None
        part = self._current(request, settings)
        arrays, metrics = reply.array_records[ARRAYS], reply.metric_records[METRICS]
        update = update_of(arrays, request.arrays)

        def hidden() -> RecordDict:
            encoded = FixedPoint(options.update_range).encode(update, weight=part.weight)
            masked = part.mask(encoded, ToldShares.read(asked).inbox)
            return RecordDict({ARRAYS: ArrayRecord({MASKED: Array(masked)}), METRICS: metrics})

        return self._once(asked, hidden)

    def _current(self, request: Received, settings: RunSettings) -> MaskingSite:
        if self._part is None or self._round != (settings.run_id, request.round):
            raise FederationError(
                "this site holds no keys of this round of secure aggregation: it restarted, or "
                "the round was not begun"
            )
        return self._part

    def _members(self, run: str, told: dict[str, str]) -> dict[str, str]:
        """Return the lasting keys of the run's sites, as they were told when this one first shared.

        A site that is lost then is among them, with the key that it has to come with; no other
        comes in later. A coordinator that invented a site when it pleases would learn the update
        of one that is left alone with it; so it must do that before this site's first update
        leaves, where `peers.json` shows it.
        """
        return dict(self._kept(run).get("members", told))

    def _require_same(self, run: str, number: int, survivors: list[str]) -> None:
        """Raise if in this round another sum was helped with before."""
        kept = self._kept(run).get("rounds", {})
        if kept.get(str(number), survivors) != survivors:
            raise FederationError(
                f"round {number}: this site has signed another list of survivors before; together "
                "two sums would tell single updates: expected "
                f"{', '.join(kept[str(number)])} again"
            )

    def _keep_learned(self, run: str, number: int, survivors: list[str]) -> None:
        self._keep(run, rounds=self._kept(run).get("rounds", {}) | {str(number): survivors})

    def _keep(self, run: str, **parts: Any) -> None:
        path, kept = self._path(run), self._kept(run)
        if kept | parts != kept:
            make_folder(path.parent)
            write_json(path, {"schema": 1, **kept, **parts}, durable=True)

    def _path(self, run: str) -> Path:
        return self._folder / "secagg" / f"{run}.json"

    def _kept(self, run: str) -> dict[str, Any]:
        path = self._path(run)
        found = read_state_file(
            path,
            lambda data: {key: dict(data[key]) for key in ("members", "rounds") if key in data},
            damaged=f"{path.name}: expected which sums were learned, found a damaged file in this "
            "site's state folder; restore it from a backup",
        )
        return found or {}
