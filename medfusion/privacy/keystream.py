"""Private randomness: a stream cipher under a key that a site's secret and names give.

A site's secret goes through HKDF-SHA256 (RFC 5869) with what the stream is for. The key that
comes out drives AES-256 in counter mode (NIST SP 800-38A) from counter zero; no two streams
share a key, so a counter is never met twice. Who does not know the secret cannot tell the words
from uniform ones, however many others he sees: a 64-bit seed could be tried out, and the state
of a Mersenne twister follows from 624 of its outputs.

======================  ===================================================================
use                     drawn from
======================  ===================================================================
noise, Poisson draws    `Keystream.words`, through integer arithmetic alone
choice of a study,      children of the same key. They change what a patient's study looks
augmentation, dropout,  like and not whether it counts, so the guarantee would hold even if
told labels             they were known; the last three need a generator of torch's
======================  ===================================================================
"""

from typing import Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from numpy.typing import NDArray

from medfusion.randomness import GENERATOR_WORDS, generator_from

KEY_BYTES = 32
_DOMAIN = "medfusion keystream 1"
_ZERO_COUNTER = bytes(16)


class Keystream:
    """An endless stream of uniform 64-bit words, the same whenever secret and names are.

    Neither its representation nor an error of it shows the key, and it cannot be pickled.

    Parameters
    ----------
    secret
        At least 32 bytes that nobody else knows.
    info
        What the stream is for: every name and number that sets it apart. ``("ab", "c")`` and
        ``("a", "bc")`` are different streams, and so are 1 and ``"1"``.

    Raises
    ------
    ValueError
        If the secret is shorter than 32 bytes.
    """

    def __init__(self, secret: bytes, *info: str | int) -> None:
        if len(secret) < KEY_BYTES:
            raise ValueError(
                f"Expected a secret of at least {KEY_BYTES} bytes, found {len(secret)}."
            )
        self._start(derive_key(secret, encode_info(_DOMAIN, *info)))

    def _start(self, root: bytes) -> None:
        # Two keys from one root: what makes children never serves as a key of the cipher.
        self._root = root
        key = _expand(root, encode_info("words"))
        self._cipher = Cipher(AES256(key), CTR(_ZERO_COUNTER)).encryptor()
        self._born: set[tuple[str | int, ...]] = set()

    def __repr__(self) -> str:
        return "Keystream(<secret>)"

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words, uint64 [count]; none of them ever comes again."""
        # The cipher keeps the counter. A word is eight bytes of it, least significant first.
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")

    def child(self, *names: str | int) -> Self:
        """Return a stream under a key of its own, which this one's position does not touch.

        Raises
        ------
        ValueError
            If these names were asked for before: the same noise would be there twice.
        """
        if names in self._born:
            raise ValueError(f"Expected a new name, found {names} again: it has been drawn from.")
        self._born.add(names)
        child = type(self).__new__(type(self))
        child._start(_expand(self._root, encode_info("child", *names)))
        return child

    def torch_generator(self, *names: str | int) -> torch.Generator:
        """Return a CPU generator of torch's whose whole state comes from a child.

        A Mersenne twister: fit for what hides or changes parts of a study, not for noise or
        Poisson draws.
        """
        words = self.child("torch", *names).words(GENERATOR_WORDS // 2)
        return generator_from(words.view("<u4"))


def derive_key(secret: bytes, info: bytes) -> bytes:
    """Return the 32 bytes that HKDF-SHA256, without salt, gives for ``secret`` and ``info``."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def encode_info(*parts: str | int) -> bytes:
    """Return the parts as bytes: each with its kind and its length, so that none run together."""
    encoded = bytearray()
    for part in parts:
        kind, text = (b"i", str(int(part))) if isinstance(part, int) else (b"s", part)
        data = text.encode()
        encoded += kind + len(data).to_bytes(8, "big") + data
    return bytes(encoded)


def _expand(root: bytes, info: bytes) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(root)
