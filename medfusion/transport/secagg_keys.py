"""Keys, masks and signed statements of secure aggregation (`medfusion.transport.secagg`)."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from pydantic import Field

from medfusion.errors import FederationError
from medfusion.federation.signatures import is_signed
from medfusion.options import Options
from medfusion.privacy.keystream import derive_key, encode_info

_DOMAIN = "medfusion secure aggregation 1"
_KEY = r"^[0-9a-f]{64}$"
TAG_BYTES = 16  # by which `encrypted` makes a text longer
_NONCE = bytes(12)  # a key encrypts one message only


class Offer(Options):
    """A site's public keys of one round, hexadecimal, its patients, and its signature of them.

    ``patients`` are those that it declares: every site weighs its update by its share of all that
    were signed, so that nobody else chooses a weight.
    """

    site: str
    patients: int = Field(ge=1)
    encrypting: str = Field(pattern=_KEY)
    masking: str = Field(pattern=_KEY)
    signature: str


def offer_content(run: str, number: int, offer: Offer) -> bytes:
    """Return what a site signs of its keys and patients."""
    keys = (offer.encrypting, offer.masking)
    return encode_info(_DOMAIN, "offer", run, number, offer.site, offer.patients, *keys)


def check_offer(run: str, number: int, offer: Offer, signer: str) -> None:
    """Check that an offer is signed by its site's lasting key, and that its keys can be used.

    Raises
    ------
    FederationError
        If not.
    """
    if not is_signed(signer, "secagg", offer_content(run, number, offer), offer.signature):
        raise FederationError(f"the keys of site {offer.site!r} are not signed by its own key")
    for key in (offer.encrypting, offer.masking):
        agree(X25519PrivateKey.generate(), key, "check")


def offers_of_one_key(offers: Iterable[Offer]) -> list[str]:
    """Return the sites that offer a key that is offered twice, by another site or by themselves."""
    keys = [(key, one.site) for one in offers for key in (one.encrypting, one.masking)]
    uses = Counter(key for key, _ in keys)
    return sorted({site for key, site in keys if uses[key] > 1})


def survivors_content(
    run: str, number: int, offers: Iterable[Offer], survivors: Sequence[str]
) -> bytes:
    """Return what sites sign of who survived: the round's keys belong to it."""
    keys = [
        part for one in offers for part in (one.site, one.patients, one.encrypting, one.masking)
    ]
    return encode_info(_DOMAIN, "survivors", run, number, len(keys), *keys, *survivors)


def agree(own: X25519PrivateKey, theirs: str, purpose: str, *names: str | int) -> bytes:
    """Return 32 bytes that two sites alone can compute, for one purpose.

    Raises
    ------
    FederationError
        If the other's key is none.
    """
    try:
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(theirs))
        shared = own.exchange(public)
    except ValueError:
        raise FederationError("a public key of a site is none") from None
    return derive_key(shared, encode_info(_DOMAIN, purpose, *names))


def encrypted(key: bytes, text: bytes) -> bytes:
    """Return ``text`` encrypted and authenticated under a key that is used for nothing else."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)


def decrypted(key: bytes, text: bytes) -> bytes | None:
    """Return what `encrypted` was given; None if it is not of this key, or was changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, text, None)
    except InvalidTag:
        return None


def mask(key: bytes, size: int) -> NDArray[np.uint32]:
    """Return the stream of a key as uint32 [size]: AES-256 in counter mode."""
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(4 * size)), dtype="<u4")


def pair_mask(key: bytes, size: int, *, own: str, other: str) -> NDArray[np.uint32]:
    """Return what a pair's mask adds to the first one's part, and takes from the second's."""
    stream = mask(key, size)
    return stream if own < other else np.negative(stream)
