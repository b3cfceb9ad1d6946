"""The streams that a Node trains with, and those that anyone could make from public values."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch

from medfusion.privacy.keystream import Keystream
from medfusion.randomness import stream

_SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class AuditKeys:
    """Names and roots of the streams of one canary run.

    Attributes
    ----------
    run, seed, site
        Public: the audited run's name and seed, and a site's name.
    secret
        In the place of the site's secret, 32 bytes.
    public_secrets
        Secrets that public values give, by a name for each in words.
    """

    run: str
    seed: int
    site: str
    secret: bytes
    public_secrets: Mapping[str, bytes]

    def private(self, number: int) -> Keystream:
        """Return what draws and noise of a round come from, as a Node would make it."""
        return self._keyed(self.secret, number)

    def public(self, number: int) -> torch.Generator:
        """Return the public stream of a round."""
        return stream(self.seed, self.site, self.run, "train", number)

    def guess(self, name: str, number: int) -> Keystream:
        """Return what `private` would be, were a secret the one called ``name``."""
        return self._keyed(self.guesses()[name], number)

    def guesses(self) -> dict[str, bytes]:
        """Return the secrets that an attacker tries: all that follow from public values."""
        seed = str(self.seed).encode()
        return {
            "no secret at all": bytes(_SECRET_BYTES),
            "the run's seed": seed.rjust(_SECRET_BYTES, b"\0"),
            "a hash of the run's seed": sha256(seed).digest(),
            **self.public_secrets,
        }

    def _keyed(self, secret: bytes, number: int) -> Keystream:
        return Keystream(secret, self.run, "train", number, "audit")
