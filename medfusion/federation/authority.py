"""Whom a hospital takes runs from: the coordinator of one federation, by its public key."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from medfusion.federation.signatures import is_signed
from medfusion.options import Options

_KEY_BYTES = 32


def content_to_sign(federation: str, settings: Mapping[str, Any]) -> bytes:
    """Return the bytes that a coordinator signs for a run: canonical JSON.

    Parameters
    ----------
    settings
        The run's settings as they travel. What is signed are these, not what a reader makes of
        them: a newer reader adds options that the signer did not know.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    content = {"federation": federation, "settings": settings}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Authority(Options):
    """The coordinator that a hospital joined.

    Parameters
    ----------
    federation
        Name of the federation: one coordinator may have several, each with its own runs.
    signing_key
        Its public key, as base64 text.
    """

    federation: str = Field(min_length=1, max_length=200)
    signing_key: str

    @field_validator("signing_key")
    @classmethod
    def _is_a_key(cls, value: str) -> str:
        try:
            size = len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            size = 0
        if size != _KEY_BYTES:  # such a one would refuse every run, and nobody would know why
            raise ValueError(f"expected a public key of {_KEY_BYTES} bytes as base64 text")
        return value

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, for people to compare."""
        return hashlib.sha256(base64.b64decode(self.signing_key)).hexdigest()

    def signed(self, settings: Mapping[str, Any], signature: str | None) -> bool:
        """Whether the coordinator signed a run of these settings in this federation."""
        content = content_to_sign(self.federation, settings)
        return signature is not None and is_signed(self.signing_key, "run", content, signature)
