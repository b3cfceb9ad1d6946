"""The key of a hospital's node: ECDSA on P-384 in the formats of OpenSSH, as Flower reads it.

The hospital makes it as ``ssh-keygen -t ecdsa -b 384`` would; only its public half leaves.
"""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)
from pydantic import AfterValidator

from medfusion.atomic_files import create_secret
from medfusion.errors import ConfigError
from medfusion.federation.key_file import read_key_file

_ALGORITHM = ec.ECDSA(hashes.SHA384())


class NodeKey:
    """A private key; its file is its owner's alone and has no passphrase."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a key in a file (mode 0600), unless there is one; return the one there.

        Raises
        ------
        ConfigError
            If the one there is refused.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        create_secret(path, pem)
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key.

        Raises
        ------
        ConfigError
            If the file is missing or no such key, or if others may read it.
        """
        content = read_key_file(path)
        try:
            key = load_ssh_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_p384(key):
            raise ConfigError(
                f"{path}: expected a private key of OpenSSH, ecdsa-sha2-nistp384 without "
                "passphrase, found something else; restore it from a backup"
            )
        return cls(key)

    @property
    def private(self) -> ec.EllipticCurvePrivateKey:
        """The key itself, for Flower, which signs with it."""
        return self._key

    @property
    def public(self) -> str:
        """The public key as OpenSSH writes it, without comment."""
        return _public_text(self._key.public_key())

    def sign(self, content: bytes) -> str:
        """Return a signature as base64 text."""
        return base64.b64encode(self._key.sign(content, _ALGORITHM)).decode()


def is_signed_by_node(public: str, content: bytes, signature: str) -> bool:
    """Whether the owner of a node's public key signed the content."""
    try:
        raw = base64.b64decode(signature, validate=True)
        _parsed(public).verify(raw, content, _ALGORITHM)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def key_fingerprint(public: str) -> str:
    """Return the fingerprint of a node's public key as ``ssh-keygen -l`` prints it."""
    digest = ssh_key_fingerprint(_parsed(public), hashes.SHA256())
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _parsed(public: str) -> ec.EllipticCurvePublicKey:
    """Return the key that a text is; raises `ValueError` unless it is its one spelling."""
    try:
        key = load_ssh_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    # One spelling for a key: they are compared as text.
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or not _is_p384(key)
        or _public_text(key) != public
    ):
        raise ValueError("expected a public key of OpenSSH: ecdsa-sha2-nistp384 and base64 text")
    return key


def _is_p384(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bool:
    return isinstance(key.curve, ec.SECP384R1)


def _public_text(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _checked(public: str) -> str:
    _parsed(public)
    return public


PublicNodeKey = Annotated[str, AfterValidator(_checked)]
