"""A site's part in secure aggregation, exchange by exchange (`medfusion.transport.secagg`).

Keys and shares live in memory: a Node that restarts within a round is lost to that round, which
goes on without it. Of each round it keeps on disk which survivors' sum it helped to learn; asked
again, after the coordinator lost the sum, it helps with the same survivors only, since two sums of
different sites differ by single updates.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, RecordDict

from client.node.pinned_peers import pinned_peers
from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import FederationError
from medfusion.federation.signatures import SigningKey
from medfusion.privacy.keystream import derive_key, encode_info
from medfusion.transport.fixed_point import FixedPoint
from medfusion.transport.requests import ARRAYS, MASKED, METRICS, Received, RunSettings, reply_with
from medfusion.transport.secagg import MaskingSite
from medfusion.transport.secagg_keys import Offer
from medfusion.transport.updates import update_of


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
    """

    def __init__(self, site: str, secret: bytes, folder: Path) -> None:
        self._site, self._folder = site, folder
        seed = derive_key(secret, encode_info("secure aggregation", "signing key", site))
        self._signing = SigningKey(Ed25519PrivateKey.from_private_bytes(seed))
        self._round: tuple[str, int] | None = None
        self._part: MaskingSite | None = None

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
            )
            return reply_with({"offer": self._part.offer().model_dump()})
        part = self._current(request, settings)
        if step == "share":
            offers = [Offer.parse(one, where="offer") for one in asked["offers"]]
            pinned = self._pinned({offer.site: offer.signer for offer in offers})
            return reply_with({"shares": part.share(offers, pinned)})
        if step == "confirm":
            survivors = [str(name) for name in asked["survivors"]]
            self._require_same(settings.run_id, request.round, survivors)
            return reply_with({"signature": part.confirm(survivors)})
        if step == "reveal":
            revealed = part.reveal(dict(asked["signatures"]), self._pinned({}))
            return reply_with({"revealed": revealed.model_dump()})
        raise FederationError(f"unknown exchange {step!r} of secure aggregation")

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
        update = update_of(reply.array_records[ARRAYS], request.arrays)
        metrics = reply.metric_records[METRICS]
        patients, total = int(str(metrics["num-examples"])), int(asked["patients"])
        encoded = FixedPoint(options.update_range).encode(update, weight=patients / max(total, 1))
        hidden = part.mask(encoded, dict(asked["inbox"]))
        return RecordDict({ARRAYS: ArrayRecord({MASKED: Array(hidden)}), METRICS: metrics})

    def _current(self, request: Received, settings: RunSettings) -> MaskingSite:
        if self._part is None or self._round != (settings.run_id, request.round):
            raise FederationError(
                "this site holds no keys of this round of secure aggregation: it restarted, or "
                "the round was not begun"
            )
        return self._part

    def _pinned(self, seen: Mapping[str, str]) -> dict[str, str]:
        return pinned_peers(self._folder / "peers.json", seen)

    def _require_same(self, run: str, number: int, survivors: list[str]) -> None:
        """Keep which sum is helped with in a round; raises if it was another one before."""
        folder = self._folder / "secagg"
        path, listed = folder / f"{run}.json", sorted(survivors)
        try:
            kept: dict[str, Any] = json.loads(path.read_text())["rounds"] if path.exists() else {}
        except (ValueError, KeyError, TypeError):
            raise FederationError(
                f"{path.name}: expected which sums were learned, found a damaged file in this "
                "site's state folder; restore it from a backup"
            ) from None
        if kept.get(str(number), listed) != listed:
            raise FederationError(
                f"round {number}: the sum of other sites was learned before; together the two "
                f"would tell single updates: expected {', '.join(kept[str(number)])} again"
            )
        make_folder(folder)
        write_json(path, {"schema": 1, "rounds": kept | {str(number): listed}}, durable=True)
