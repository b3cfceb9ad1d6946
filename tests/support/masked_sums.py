"""A round of secure aggregation in memory, with sites lost where a test says so."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfusion.federation.signatures import SigningKey
from medfusion.transport.secagg import MaskingSite, unmasked

PATIENTS = 100  # of each site
STEPS = ("offer", "share", "mask", "confirm", "reveal")


def signing_key(name):
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


class MaskedSum:
    """``lost`` maps a step to the sites that do not answer it, nor any later one.

    ``seen`` is all that the coordinator gets to see, step by step.
    """

    def __init__(self, parts, threshold, lost=None):
        self.parts, self.threshold, self.lost = parts, threshold, lost or {}
        self.gone = set()
        self.sites = {
            name: MaskingSite(
                name, signing_key(name), run="run", number=3, threshold=threshold, patients=PATIENTS
            )
            for name in parts
        }
        self.members = {name: signing_key(name).public for name in parts}
        self.seen = {}

    def _step(self, step, names, call):
        self.gone |= set(self.lost.get(step, ()))
        found = {name: call(name) for name in names if name not in self.gone}
        self.seen[step] = found
        return found

    def run(self):
        """Return the sum, and who is in it."""
        offered = self._step("offer", self.sites, lambda name: self.sites[name].offer())
        self.offers = list(offered.values())
        shares = self._step(
            "share",
            offered,
            lambda name: self.sites[name].share(self.offers, self.members),
        )

        masked = self._step(
            "mask",
            shares,
            lambda name: self.sites[name].mask(self.parts[name], inbox_of(name, shares)),
        )
        signed = self._step("confirm", masked, lambda name: self.sites[name].confirm(list(masked)))
        revealed = self._step("reveal", signed, lambda name: self.sites[name].reveal(signed))
        total = unmasked(
            masked,
            revealed,
            self.offers,
            shares,
            run="run",
            number=3,
            threshold=self.threshold,
        )
        return total, sorted(masked)


def inbox_of(name, shares):
    """Return what others sent to a site."""
    return {giver: sent.encrypted[name] for giver, sent in shares.items() if giver != name}


def random_parts(names, size=50, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2**32, size, dtype=np.uint32) for name in names}
