"""Differential privacy of whole sites, added by the coordinator.

**Unit and adjacency.** A site: one site's updates, of all rounds, replaced by zero. **Mechanism.**
Each site's update (its reply minus the model it was sent) is clipped to L2 norm C over all
parameters together; the sum over the sites that answered gets Gaussian noise of standard
deviation z C, and is divided by the number of sites of the run, which is public and the same in
each round whoever answers [1]_. The strategy sees the resulting model only, as if one site had
sent it. **Covered:** the models of all rounds, and what is computed from them. **Not covered:**
what the coordinator itself sees, metrics, and who took part. Sampled sites (``fraction_train``)
are accounted for as if all took part: they are drawn from the run's public seed, which hides
nothing.

With few sites the noise drowns the mean: it has z C / n in each coordinate, and a useful epsilon
takes thousands of sites. Four hospitals give no utility.

References
----------
.. [1] McMahan, Ramage, Talwar and Zhang, "Learning differentially private recurrent language
   models", ICLR 2018 (the fixed-denominator estimator).
.. [2] Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018.
"""

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from medfusion.atomic_files import create_secret, make_folder, write_json
from medfusion.digests import sha256_of
from medfusion.errors import DataError
from medfusion.privacy.gaussian_noise import noised
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.options import ClientDpOptions
from medfusion.transport.requests import ARRAYS, METRICS, WEIGHT_KEY
from server.run_state import RunContext

Vector = NDArray[np.float64]

_LEDGER, _SECRET = "client-dp.json", "client-dp.secret"
_SECRET_BYTES = 32


def clipped_update(reply: ArrayRecord, incoming: ArrayRecord, clip: float) -> Vector:
    """Return a site's update as one vector of L2 norm at most ``clip`` (to float64 rounding).

    Floating-point arrays count, in the order of their names, those without dimensions too;
    whole-number buffers do not. An update that is not finite counts as none.
    """
    parts = [
        reply[name].numpy().astype(np.float64).ravel()
        - incoming[name].numpy().astype(np.float64).ravel()
        for name in _float_names(incoming)
    ]
    update = np.concatenate(parts)
    norm = float(np.linalg.norm(update))
    if not math.isfinite(norm):
        return np.zeros_like(update)
    return update if norm <= clip else update * (clip / norm)


@dataclass(frozen=True)
class ClientDp:
    """Turns the replies of a round into one that is private of each site.

    Parameters
    ----------
    sites
        The sites of the run: the public denominator.
    folder
        The run folder, where the charges are kept.
    secret
        Root of the noise, the coordinator's own.
    """

    options: ClientDpOptions
    run_id: str
    sites: int
    folder: Path
    secret: bytes = field(repr=False)

    def combine(
        self, number: int, incoming: ArrayRecord, replies: Mapping[str, Message]
    ) -> Message:
        """Return one reply that carries the noised mean model of round ``number``.

        The round is charged first. The same updates get the same noise, so that a round which
        was interrupted is paid once; other updates of the same round are charged anew, and so
        are the same ones under another secret, which get other noise.

        Raises
        ------
        DataError
            If the file of charges is damaged.
        """
        clip = self.options.clip
        total = np.zeros(sum(incoming[name].numpy().size for name in _float_names(incoming)))
        for name in sorted(replies):
            arrays = replies[name].content.array_records[ARRAYS]
            total += clipped_update(arrays, incoming, clip)
        content = self._content(incoming, total)
        self._charge(number, content)
        names = (self.run_id, "client-dp", number, content)
        total = noised(
            total,
            sensitivity=self._sensitivity(),
            noise_multiplier=self.options.noise_multiplier,
            keystream=Keystream(self.secret, *names),
        )
        arrays = _moved(incoming, total / self.sites)
        content_of = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT_KEY: 1})})
        return Message(content_of, 0, "train")

    def _sensitivity(self) -> float:
        """Return how far one site's update moves the sum, in float64 and not on paper only.

        The norm of 10^7 numbers comes out low by 1e-9 of itself at most, and the update is scaled
        by it. Sums of n updates, with one and without, are each off by n^2 2^-53 clips at most.
        """
        return self.options.clip * (1 + 1e-9 + self.sites**2 * 2.0**-52)

    def _content(self, incoming: ArrayRecord, total: Vector) -> str:
        """Return a MAC of what a release depends on, the secret included.

        A bare hash would give the sum away to whoever can guess all of it but one site's part.
        """
        parts = [total.tobytes()]
        for name in sorted(incoming):
            parts += [name.encode(), incoming[name].data]
        text = f"client-dp charge/{sha256_of(parts)}"
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()

    def account(self) -> dict[str, Any]:
        """Return what the run's rounds cost so far, as plain JSON data."""
        charges = [charge for charge in self._charges() if charge["run"] == self.run_id]
        delta = self.options.delta
        return {
            "epsilon": self._epsilon(len(charges)),
            "delta": delta,
            "clip": self.options.clip,
            "noise_multiplier": self.options.noise_multiplier,
            "sites": self.sites,
            "releases": len(charges),
        }

    def _epsilon(self, releases: int) -> float:
        """Return the epsilon of Gaussian sums over all sites, exact at any noise [2]_."""
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

        if not releases:
            return 0.0
        # n sums with noise z are one with noise z / sqrt(n).
        sigma = self.options.noise_multiplier / math.sqrt(releases)
        return float(get_epsilon_gaussian(sigma, self.options.delta))

    def _charge(self, number: int, content: str) -> None:
        """Bring a round's charge to the disk, unless it is there."""
        charges = self._charges()
        charge = {"run": self.run_id, "round": number, "content": content}
        if charge not in charges:
            ledger = {"schema": 1, "charges": [*charges, charge]}
            write_json(self.folder / _LEDGER, ledger, durable=True)

    def _charges(self) -> list[dict[str, Any]]:
        path = self.folder / _LEDGER
        if not path.exists():
            return []
        try:
            charges = json.loads(path.read_text(encoding="utf-8"))["charges"]
            if not isinstance(charges, list):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}: expected the charges of this run, found a damaged file; restore it from "
                "a backup"
            ) from None
        return charges


def coordinators_secret(folder: Path, *, seed: int, simulated: bool) -> bytes:
    """Return the root of the coordinator's noise, made once and readable by its owner only.

    A simulation derives it from the run's seed; its noise protects nobody.

    Raises
    ------
    DataError
        If the file is damaged, or missing where rounds were charged already.
    """
    if simulated:
        return hashlib.sha256(f"simulated coordinator's secret/{seed}".encode()).digest()
    path = folder / _SECRET
    if not path.exists():
        if (folder / _LEDGER).exists():
            raise DataError(
                f"{path}: missing, though the rounds in {_LEDGER} drew their noise from it; "
                "restore it from a backup, or begin a run in a new folder: a new secret would "
                "give updates that were released other noise, which averages out"
            )
        make_folder(folder)
        create_secret(path, secrets.token_bytes(_SECRET_BYTES))
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise DataError(
            f"{path}: expected {_SECRET_BYTES} bytes, found {len(secret)}; restore it from a backup"
        )
    return secret


def client_dp_of(context: RunContext, run_id: str) -> ClientDp | None:
    """Return what ``[server.client_dp]`` of a run asks for; None if nothing."""
    options, seed = context.config.server.client_dp, context.config.run.seed
    if options is None:
        return None
    secret = coordinators_secret(context.folder, seed=seed, simulated=context.simulated)
    return ClientDp(options, run_id, len(context.roster.sites), context.folder, secret)


def _float_names(record: ArrayRecord) -> list[str]:
    return sorted(
        name for name, array in record.items() if np.issubdtype(array.numpy().dtype, np.floating)
    )


def _moved(incoming: ArrayRecord, update: Vector) -> ArrayRecord:
    """Return the model plus an update, in the arrays' own shapes and types."""
    moved, start = dict(incoming.items()), 0
    for name in _float_names(incoming):
        before = incoming[name].numpy()
        step = update[start : start + before.size].reshape(before.shape)
        moved[name] = Array(np.asarray(before.astype(np.float64) + step, before.dtype))
        start += before.size
    return ArrayRecord(moved)
