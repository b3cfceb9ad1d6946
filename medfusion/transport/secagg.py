"""Secure aggregation [1]_: the coordinator learns the sum of the sites' updates and no single one.

Five exchanges, each with those who answered the one before:

1. *offer*: a site makes two key pairs for this round, and signs them with its lasting key.
2. *share*: a site draws a seed, and sends Shamir shares of seed and masking key to each other
   site, encrypted for it, with digests by which the coordinator tells false shares later.
3. *mask*: a site adds to its update the stream of its seed, and for each other site that shared
   a stream that the other takes away.
4. *confirm*: a site signs who the survivors are: those whose masked update arrived.
5. *reveal*: shown that a threshold of survivors signed the same list, a site gives, of each
   survivor, the share of its seed; of each other the share of its masking key; never both.

Who is lost before 3 is left out; who is lost after 2 has its masks taken out again; who is lost
after 3 still counts. Below the threshold of sites an exchange ends the round, and what was sent
by then says nothing: every masked update is hidden by a seed or by a key that too few shares are
known of.

**Trust.** The coordinator may deviate from the protocol, among sites that know one another. Of n
sites, two different lists of survivors need 2 t - n that sign both to reach the threshold t twice,
and honest ones sign once. So t above n / 2, which every site insists on, is enough where all
sites are honest; a coordinator that deviates *together with c sites* learns single updates unless
2 t - n > c: with t above 2 n / 3, as in [1]_, up to a third of them. Against those who keep to the
protocol and pool what they see, t - 1 sites and the coordinator learn nothing but the others' sum.
A site believes the lasting keys that it was told before its own first masked update of a run left:
against a coordinator that *invents* sites by then only a comparison of these keys by another
channel helps (`client.node.pinned_peers`). Masks hide updates from the coordinator and give no
differential privacy: what the sum tells of a patient is what the plan accounts for.

References
----------
.. [1] Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning",
   CCS 2017: figure 4 with the steps of the active adversary.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from pydantic import Field

from medfusion.errors import FederationError
from medfusion.federation.signatures import SigningKey, is_signed
from medfusion.options import Options
from medfusion.transport import shamir
from medfusion.transport.secagg_keys import (
    TAG_BYTES,
    Offer,
    agree,
    check_offer,
    decrypted,
    encrypted,
    mask,
    offer_content,
    offers_of_one_key,
    pair_mask,
    survivors_content,
)

ENCRYPTED_BYTES = 2 * shamir.SHARE_BYTES + TAG_BYTES  # what one site sends to another
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Share = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * shamir.SHARE_BYTES}}}$")]


class Shares(Options):
    """What a site sends once it knows the others, hexadecimal, by the receiver's name.

    ``seeds`` and ``keys`` are digests of the shares, its own among them. Shares being random and
    longer than a digest, these tell nothing of them that could be computed.
    """

    encrypted: dict[str, Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * ENCRYPTED_BYTES}}}$")]]
    seeds: dict[str, Digest]
    keys: dict[str, Digest]


class Revealed(Options):
    """Shares that a site gives, hexadecimal: of survivors' seeds, and of lost sites' keys."""

    seeds: dict[str, Share]
    keys: dict[str, Share]


class MaskingSite:
    """One site in one round; each step is taken once, in order.

    Parameters
    ----------
    site
        Its name.
    signing
        Its lasting key.
    run, number
        Run and round.
    threshold
        Fewest sites whose sum may be learned.
    patients
        Those that the site declares.
    """

    def __init__(
        self,
        site: str,
        signing: SigningKey,
        *,
        run: str,
        number: int,
        threshold: int,
        patients: int,
    ) -> None:
        self._site, self._signing, self._patients = site, signing, patients
        self._run, self._number, self._threshold = run, number, threshold
        self._encrypting, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(shamir.SECRET_BYTES)
        self._offers: dict[str, Offer] = {}
        self._members: dict[str, str] = {}
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._inbox: dict[str, str] | None = None
        self._survivors: tuple[str, ...] | None = None
        self._revealed = False

    def offer(self) -> Offer:
        """Return the public keys."""
        unsigned = Offer(
            site=self._site,
            patients=self._patients,
            encrypting=self._encrypting.public_key().public_bytes_raw().hex(),
            masking=self._masking.public_key().public_bytes_raw().hex(),
            signature="",
        )
        content = offer_content(self._run, self._number, unsigned)
        signature = self._signing.sign("secagg", content)
        return unsigned.model_copy(update={"signature": signature})

    def share(self, offers: Sequence[Offer], members: Mapping[str, str]) -> Shares:
        """Return the shares of seed and masking key.

        Parameters
        ----------
        offers
            Of all sites that take part in the round.
        members
            Lasting keys of the run's sites by name, of lost ones too.

        Raises
        ------
        FederationError
            If too few take part, the threshold is no majority, or an offer is no member's, not
            signed or of no use.
        """
        if self._offers:
            raise FederationError("shares of this round were sent already: refused")
        named = {offer.site: offer for offer in sorted(offers, key=lambda offer: offer.site)}
        if len(named) < len(offers) or named.get(self._site) != self.offer():
            raise FederationError("expected each site once, and this one with its own keys")
        self._require(len(named))
        if strangers := sorted(named.keys() - members.keys()):
            raise FederationError(
                f"the run's masked rounds began among {', '.join(sorted(members))}: "
                f"{', '.join(strangers)} may take part in another run"
            )
        if 2 * self._threshold <= len(members):
            raise FederationError(
                f"threshold = {self._threshold} of {len(members)} sites: expected more than half, "
                "or two sums of different sites could be learned"
            )
        for name, one in named.items():
            check_offer(self._run, self._number, one, members[name])
        if offers_of_one_key(named.values()):
            raise FederationError("expected different keys of all sites")
        self._offers, self._members = named, dict(members)
        places = {name: place for place, name in enumerate(named, start=1)}
        spread = partial(shamir.split, threshold=self._threshold, places=list(places.values()))
        seeds, keys = spread(self._seed), spread(self._masking.private_bytes_raw())
        self._shares = {place: (seeds[place], keys[place]) for place in places.values()}
        return Shares(
            encrypted={
                name: encrypted(self._channel(self._site, name), seeds[place] + keys[place]).hex()
                for name, place in places.items()
                if name != self._site
            },
            seeds={name: _digest(seeds[place].hex()) for name, place in places.items()},
            keys={name: _digest(keys[place].hex()) for name, place in places.items()},
        )

    @property
    def weight(self) -> float:
        """Share that this site has in the patients of all whose signed offers were shown."""
        return self._patients / sum(offer.patients for offer in self._offers.values())

    def mask(self, part: NDArray[np.uint32], inbox: Mapping[str, str]) -> NDArray[np.uint32]:
        """Return a part of the sum, uint32 [P], masked.

        Parameters
        ----------
        inbox
            What the other sites that shared sent to this one.

        Raises
        ------
        FederationError
            If too few sites shared, or a step is missing.
        """
        if not self._offers or self._inbox is not None:
            raise FederationError("masking comes once, after sharing: refused")
        if set(inbox) - set(self._offers) or self._site in inbox:
            raise FederationError("shares of sites that take no part: refused")
        self._require(len(inbox) + 1)
        self._inbox = dict(inbox)
        masked = part + mask(self._seed, part.size)
        for name in inbox:
            key = self._pair_key(name)
            masked += pair_mask(key, part.size, own=self._site, other=name)
        return masked

    def confirm(self, survivors: Sequence[str]) -> str:
        """Return the signature of the list of survivors; of one list alone.

        Raises
        ------
        FederationError
            If they are too few, not among those that shared, or this site is none of them.
        """
        if self._inbox is None or self._survivors is not None:
            raise FederationError("survivors are confirmed once, after masking: refused")
        listed = tuple(sorted(set(survivors)))
        if not set(listed) <= {*self._inbox, self._site} or self._site not in listed:
            raise FederationError("expected survivors among those that shared, and this site")
        self._require(len(listed))
        self._survivors = listed
        return self._signing.sign("secagg", self._list_content())

    def reveal(self, signatures: Mapping[str, str]) -> Revealed:
        """Return shares of the survivors' seeds and of the lost sites' keys.

        A site whose message cannot be decrypted is passed over: others may know enough.

        Raises
        ------
        FederationError
            If fewer survivors than the threshold signed the list that this site signed.
        """
        if self._survivors is None or self._inbox is None or self._revealed:
            raise FederationError("shares are revealed once, after survivors: refused")
        content = self._list_content()
        signed = [
            name
            for name, signature in signatures.items()
            if name in self._survivors
            and is_signed(self._members[name], "secagg", content, signature)
        ]
        self._require(len(signed))
        self._revealed = True
        seeds, keys = {}, {}
        for name in (self._site, *self._inbox):
            pair = self._shares_of(name)
            if pair is not None and name in self._survivors:
                seeds[name] = pair[0].hex()
            elif pair is not None:
                keys[name] = pair[1].hex()
        return Revealed(seeds=seeds, keys=keys)

    @property
    def survivors(self) -> tuple[str, ...] | None:
        """The list that this site signed."""
        return self._survivors

    def _shares_of(self, name: str) -> tuple[bytes, bytes] | None:
        place = list(self._offers).index(self._site) + 1
        if name == self._site:
            return self._shares[place]
        assert self._inbox is not None
        try:
            sent = bytes.fromhex(self._inbox[name])
        except ValueError:
            return None
        text = decrypted(self._channel(name, self._site), sent)
        if text is None or len(text) != 2 * shamir.SHARE_BYTES:
            return None
        return text[: shamir.SHARE_BYTES], text[shamir.SHARE_BYTES :]

    def _channel(self, sender: str, receiver: str) -> bytes:
        """Return the key of what one site sends to another."""
        theirs = self._offers[receiver if sender == self._site else sender].encrypting
        return agree(self._encrypting, theirs, "shares", self._run, self._number, sender, receiver)

    def _pair_key(self, name: str) -> bytes:
        pair = sorted((self._site, name))
        theirs = self._offers[name].masking
        return agree(self._masking, theirs, "masks", self._run, self._number, *pair)

    def _list_content(self) -> bytes:
        assert self._survivors is not None
        return survivors_content(self._run, self._number, self._offers.values(), self._survivors)

    def _require(self, found: int) -> None:
        if found < self._threshold:
            raise FederationError(
                f"secure aggregation needs {self._threshold} sites, found {found}: refused"
            )


def unmasked(
    masked: Mapping[str, NDArray[np.uint32]],
    revealed: Mapping[str, Revealed],
    offers: Sequence[Offer],
    shared: Mapping[str, Shares],
    *,
    run: str,
    number: int,
    threshold: int,
) -> NDArray[np.uint32]:
    """Return the sum of the parts of all sites whose masked part arrived, uint32 [P].

    Parameters
    ----------
    masked, revealed
        By site: masked parts of the survivors, and what sites revealed.
    offers
        Of all sites that took part.
    shared
        What survivors and lost sites had sent: a share that is not of its digest is passed over.

    Raises
    ------
    FederationError
        If too few sites revealed what is missing, or a site sent shares of no secret.
    """
    places = {name: place for place, name in enumerate(sorted(o.site for o in offers), start=1)}
    keys = {offer.site: offer.masking for offer in offers}
    total = np.zeros_like(next(iter(masked.values())))
    for part in masked.values():
        total += part  # modulo 2^32: in any order

    def joined(name: str, kind: str) -> bytes:
        digests, given = getattr(shared[name], kind), {}
        for giver, all_given in revealed.items():
            if name in (shares := getattr(all_given, kind)):
                given[giver] = shares[name]
        false = {giver for giver, share in given.items() if _digest(share) != digests[giver]}
        right = {places[n]: bytes.fromhex(given[n]) for n in given.keys() - false}
        try:
            return shamir.join(right, threshold=threshold)
        except ValueError as error:
            told = f"secure aggregation: shares of site {name!r}: {error}"
            if false:
                told += f" What {', '.join(sorted(false))} gave is not what it says it sent."
            raise FederationError(told) from None

    for name in sorted(masked):
        total -= mask(joined(name, "seeds"), total.size)
    for lost in sorted(shared.keys() - masked.keys()):
        private = X25519PrivateKey.from_private_bytes(joined(lost, "keys"))
        if private.public_key().public_bytes_raw().hex() != keys[lost]:
            raise FederationError(f"secure aggregation: wrong shares of site {lost!r}'s key")
        for name in sorted(masked):
            pair = sorted((lost, name))
            key = agree(private, keys[name], "masks", run, number, *pair)
            total -= pair_mask(key, total.size, own=name, other=lost)
    return total


def _digest(share: str) -> str:
    """Return 128 bits by which a share is known again: nobody makes another one that fits."""
    return hashlib.sha256(bytes.fromhex(share)).hexdigest()[:32]
