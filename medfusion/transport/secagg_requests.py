"""What the coordinator tells a site in each exchange of secure aggregation."""

from collections.abc import Mapping
from typing import Any, Self

from medfusion.federation.signatures import PublicKey
from medfusion.options import Options
from medfusion.transport.secagg_keys import Offer


class Told(Options):
    """Base of what is told in one exchange."""

    @classmethod
    def read(cls, asked: Mapping[str, Any]) -> Self:
        """Read an exchange, whose name stands beside; raises `ConfigError`."""
        told = {key: value for key, value in asked.items() if key != "step"}
        return cls.parse(told, where=f"secure aggregation, {asked.get('step', 'mask')}")


class ToldOffers(Told):
    """Offers of the sites of the round; and lasting keys of all of the run, lost ones too."""

    offers: tuple[Offer, ...]
    members: dict[str, PublicKey]


class ToldShares(Told):
    """What other sites sent to this one, by the sender."""

    inbox: dict[str, str]


class ToldSurvivors(Told):
    """Whose masked updates arrived."""

    survivors: tuple[str, ...]


class ToldSignatures(Told):
    """Who of them signed that, by name."""

    signatures: dict[str, str]
