"""Private keys of certificates: EC on P-384, as PEM."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from medfusion.errors import ConfigError
from medfusion.federation.key_file import read_key_file


def new_key_pem() -> bytes:
    """Make a key."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a key.

    Raises
    ------
    ConfigError
        If the file is missing or damaged, or if others may read it.
    """
    content = read_key_file(path)
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path}: expected a private EC key as PEM without passphrase, found a damaged file; "
            "restore it from a backup"
        )
    return key
