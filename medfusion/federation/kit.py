"""Kits: what a hospital, and the coordinator's server, need to take part in a federation.

A kit is a folder. Its `kit.json` tells where the coordinator is, what the task is and which files
belong to it; `kit.sig` is the coordinator's signature of it. Since the signature is checked by a
key that is in the kit itself, it proves no more than that the kit is of one piece: whose it is,
people settle by comparing its `fingerprint` in another way than the kit took.
"""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import AwareDatetime, Field, PrivateAttr, field_validator

from medfusion.digests import sha256_of
from medfusion.errors import ConfigError
from medfusion.federation.documents import (
    Address,
    Digest,
    Name,
    Patience,
    Port,
    Version,
    read_json,
    split_address,
)
from medfusion.federation.signatures import is_signed
from medfusion.options import FileSchema, Options

KIT, SIGNATURE = "kit.json", "kit.sig"
CA, TASK, SERVER_CERTIFICATE = "ca.pem", "task.toml", "server.pem"

_FINGERPRINT_GROUPS = 8  # of four hex digits: 128 bits, beyond anyone's search


class Kit(Options):
    """What the kits of sites and server share; made by `read` of one of the two."""

    lists: ClassVar[frozenset[str]]
    """The files whose SHA-256 are in `files`."""

    file_schema: FileSchema = 1
    federation: Name
    address: Address
    task_sha256: Digest
    signing_key: str
    versions: tuple[Version, ...] = Field(min_length=1)
    patience: Patience = 420
    issued: AwareDatetime
    expires: AwareDatetime
    files: dict[str, Digest]
    _folder: Path = PrivateAttr()

    @field_validator("files")
    @classmethod
    def _lists_its_files(cls, files: dict[str, Digest]) -> dict[str, Digest]:
        if files.keys() != cls.lists:
            raise ValueError(f"expected the digests of {', '.join(sorted(cls.lists))}")
        return files

    @classmethod
    def read(cls, folder: Path, *, now: datetime | None = None) -> Self:
        """Read and check a kit.

        Parameters
        ----------
        folder
            Where `kit.json` is.
        now
            The time at which it is to be valid; by default the present.

        Raises
        ------
        ConfigError
            If it is no kit or one of the other kind, its signature does not hold, a file of it is
            missing or was changed, or it has expired.
        """
        if not os.path.isfile(folder / KIT):  # also False where it must not be looked at
            raise ConfigError(f"{folder}: expected a kit, found no {KIT} in it")
        content, data = read_json(folder / KIT)
        expected = cls.model_fields["kind"].default
        if data.get("kind") != expected:
            raise ConfigError(
                f"{folder / KIT}: expected the kit of a {expected}, found kind {data.get('kind')!r}"
            )
        kit = cls.parse(data, where=str(folder / KIT))
        kit._folder = folder
        kit._refuse_unless_signed(content)
        kit._refuse_changed_files()
        kit._refuse_if_expired(now or datetime.now(UTC))
        return kit

    def _refuse_unless_signed(self, content: bytes) -> None:
        path = self._folder / SIGNATURE
        try:
            signature = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            signature = ""
        if not is_signed(self.signing_key, "kit", content, signature):
            raise ConfigError(
                f"{path}: expected the coordinator's signature of {KIT}, found none that holds; "
                "one of the two files was changed or lost: get the kit again"
            )

    def _refuse_changed_files(self) -> None:
        for name, expected in self.files.items():
            path = self._folder / name
            try:
                found = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise ConfigError(
                    f"{path}: belongs to the kit but cannot be read ({error.strerror}); get the "
                    "kit again"
                ) from None
            if found != expected:
                raise ConfigError(
                    f"{path}: is not the file that the coordinator signed (SHA-256 {found}, "
                    f"expected {expected}); get the kit again"
                )

    def _refuse_if_expired(self, now: datetime) -> None:
        if now >= self.expires:
            raise ConfigError(
                f"{self._folder / KIT}: expired on {self.expires:%Y-%m-%d %H:%M} UTC, and it is "
                f"{now:%Y-%m-%d %H:%M} by this machine's clock; ask the coordinator for a new kit"
            )

    @property
    def fingerprint(self) -> str:
        """What people compare to know whose kit it is: a digest of signing key and authority."""
        digest = sha256_of([self.signing_key.encode(), self.files[CA].encode()])
        return "-".join(digest[4 * i : 4 * i + 4] for i in range(_FINGERPRINT_GROUPS))

    @property
    def host(self) -> str:
        """The host of the address, an IPv6 one without brackets."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        """The port of the address."""
        return split_address(self.address)[1]

    @property
    def folder(self) -> Path:
        """Where the kit is."""
        return self._folder

    @property
    def ca(self) -> Path:
        """The certificate of the federation's authority, by which sites know the server."""
        return self._folder / CA

    @property
    def task(self) -> Path:
        """The task."""
        return self._folder / TASK


class SiteKit(Kit):
    """The kit of a hospital."""

    lists = frozenset({CA, TASK})

    kind: Literal["site"] = "site"
    site: Name

    @property
    def node_key(self) -> Path:
        """The hospital's private key, which `medfusion site join` makes and which stays there."""
        return self._folder / "node.key"

    @property
    def join_request(self) -> Path:
        """The file that the hospital sends to the coordinator."""
        return self._folder / f"join-{self.site}.json"


class ServerKit(Kit):
    """The kit of the coordinator's server; `control_port` is for its own machine only."""

    lists = frozenset({CA, TASK, SERVER_CERTIFICATE})

    kind: Literal["server"] = "server"
    control_port: Port

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self._folder / SERVER_CERTIFICATE

    @property
    def server_key(self) -> Path:
        """The private key of the server's certificate."""
        return self._folder / "server.key"

    @property
    def signing_key_file(self) -> Path:
        """The private key with which the coordinator signs kits and runs."""
        return self._folder / "signing.key"

    @property
    def nodes(self) -> Path:
        """The nodes that were admitted; see `medfusion.federation.nodes`."""
        return self._folder / "nodes.json"


def check_version(kit: Kit, installed: str) -> None:
    """Refuse an installed MedFusion that is not one that the kit is for.

    Raises
    ------
    ConfigError
        With both versions and the remedy.
    """
    if installed not in kit.versions:
        raise ConfigError(
            f"{kit.folder / KIT}: expected MedFusion {' or '.join(kit.versions)}, found "
            f"{installed} installed; install medfusion=={kit.versions[-1]}, or ask the "
            "coordinator for a kit of the version you have"
        )
