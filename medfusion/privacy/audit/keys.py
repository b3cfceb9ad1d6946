"""The streams that a Node trains with, and those that anyone could make from public values."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from medfusion.randomness import stream


@dataclass(frozen=True, kw_only=True)
class AuditKeys:
    """Names and roots of the streams of one canary run.

    Attributes
    ----------
    run, seed, site
        Public: the audited run's name and seed, and a site's name.
    secret
        In the place of the site's secret.
    public_secrets
        Secrets that public values give, by a name for each in words.
    """

    run: str
    seed: int
    site: str
    secret: bytes
    public_secrets: Mapping[str, bytes]

    def private(self, number: int) -> torch.Generator:
        """Return what draws and noise of a round come from, as a Node would make it."""
        return self._keyed(self.secret, number)

    def public(self, number: int) -> torch.Generator:
        """Return the public stream of a round."""
        return stream(self.seed, self.site, self.run, "train", number)

    def guesses(self, number: int) -> dict[str, torch.Generator]:
        """Return what an attacker can try in place of the private stream of a round."""
        keyed = {name: self._keyed(root, number) for name, root in self.public_secrets.items()}
        return {
            "the run's seed as the secret": self._keyed(str(self.seed).encode(), number),
            "the round's public stream": self.public(number),
            "a generator seeded with the run's seed": torch.Generator().manual_seed(self.seed),
            **keyed,
        }

    def _keyed(self, secret: bytes, number: int) -> torch.Generator:
        return stream(secret, self.run, "train", number, "audit")
