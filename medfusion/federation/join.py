"""A hospital joins: it makes its node's key and a request to be admitted.

The request holds the public key with a proof that who sends it has the private one. It does not
prove that a hospital sent it: before they run together, people compare the fingerprints of kit
and key in another way than the files took.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from medfusion.atomic_files import write_atomically
from medfusion.digests import sha256_of
from medfusion.errors import ConfigError
from medfusion.federation.documents import Name, document_text, read_document
from medfusion.federation.kit import SiteKit
from medfusion.federation.node_key import (
    NodeKey,
    PublicNodeKey,
    is_signed_by_node,
    key_fingerprint,
)
from medfusion.options import FileSchema, Options


class JoinRequest(Options):
    """What a hospital sends to be admitted."""

    file_schema: FileSchema = 1
    federation: Name
    site: Name
    public_key: PublicNodeKey
    proof: str

    @classmethod
    def by(cls, key: NodeKey, *, federation: str, site: str) -> Self:
        """Return the request of a key's owner."""
        proof = key.sign(_signed(federation, site, key.public))
        return cls(federation=federation, site=site, public_key=key.public, proof=proof)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a request and check its proof.

        Raises
        ------
        ConfigError
            If the file is damaged, or not made by who has the private key.
        """
        request = read_document(cls, path)
        content = _signed(request.federation, request.site, request.public_key)
        if not is_signed_by_node(request.public_key, content, request.proof):
            raise ConfigError(
                f"{path}: expected a proof made with the private key of public_key, found one that "
                "does not hold; the file was changed: get it from the hospital again"
            )
        return request


@dataclass(frozen=True)
class Joined:
    """A hospital's kit with the request that was written for it."""

    kit: SiteKit
    request: Path
    key_fingerprint: str


def join(folder: Path, *, fingerprint: str | None = None, now: datetime | None = None) -> Joined:
    """Check a kit, make its node's key unless there is one, and write the request beside it.

    Parameters
    ----------
    folder
        The kit.
    fingerprint
        What the coordinator says that the kit's is; None to compare it afterwards.
    now
        The time at which the kit is to be valid; by default the present.

    Raises
    ------
    ConfigError
        If the kit is refused, has another fingerprint or cannot be written to.
    """
    kit = SiteKit.read(folder, now=now)
    if fingerprint is not None and _digits(fingerprint) != _digits(kit.fingerprint):
        raise ConfigError(
            f"{folder}: expected a kit with fingerprint {fingerprint}, found {kit.fingerprint}; it "
            "is not the coordinator's, or was mistyped: do not use the kit before they agree"
        )
    try:
        key = NodeKey.create(kit.node_key)
        request = JoinRequest.by(key, federation=kit.federation, site=kit.site)
        write_atomically(kit.join_request, document_text(request), durable=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written to ({error.strerror}); copy the kit to a folder on a "
            "local disk that is yours"
        ) from None
    return Joined(kit=kit, request=kit.join_request, key_fingerprint=key_fingerprint(key.public))


def _digits(fingerprint: str) -> str:
    """Leave out how it was typed."""
    return "".join(fingerprint.split()).replace("-", "").lower()


def _signed(federation: str, site: str, public_key: str) -> bytes:
    digest = sha256_of(part.encode() for part in (federation, site, public_key))
    return f"medfusion join\n{digest}".encode()
