"""Signatures of coordinator and sites: Ed25519 [1]_, its keys and signatures as base64 text.

What is signed begins with its purpose, so that a signature for one is worth nothing for another.

References
----------
.. [1] Bernstein et al., "High-speed high-security signatures", J. Cryptographic Engineering 2012;
   RFC 8032.
"""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from medfusion.atomic_files import create_secret
from medfusion.errors import ConfigError
from medfusion.federation.key_file import read_key_file

Purpose = Literal["kit", "run", "secagg"]

PublicKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
"""32 bytes as base64."""

_KEY_BYTES = 32


class SigningKey:
    """A private key; its file holds the 32 raw bytes, for its owner alone."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a key in a file (mode 0600), unless there is one; return the one there."""
        create_secret(path, Ed25519PrivateKey.generate().private_bytes_raw())
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key.

        Raises
        ------
        ConfigError
            If the file is missing, unreadable or no key, or if others may read it.
        """
        data = read_key_file(path)
        if len(data) != _KEY_BYTES:
            raise ConfigError(
                f"{path}: expected a signing key of {_KEY_BYTES} bytes, found {len(data)}; "
                "restore the file from a backup"
            )
        return cls(Ed25519PrivateKey.from_private_bytes(data))

    @property
    def public(self) -> str:
        """The public key, which checks signatures."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, purpose: Purpose, content: bytes) -> str:
        """Return the signature of some content for one purpose."""
        return base64.b64encode(self._key.sign(_signed(purpose, content))).decode()


def is_signed(public: str, purpose: Purpose, content: bytes, signature: str) -> bool:
    """Whether the owner of a public key signed the content for this purpose.

    A key or signature that is none signs nothing.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(base64.b64decode(signature, validate=True), _signed(purpose, content))
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def _signed(purpose: Purpose, content: bytes) -> bytes:
    return f"medfusion {purpose}\n".encode() + content
