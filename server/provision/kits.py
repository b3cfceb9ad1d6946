"""Issues kits, unless those that are there hold what they should for long enough."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from medfusion.atomic_files import make_folder
from medfusion.errors import ConfigError
from medfusion.federation.documents import document_text
from medfusion.federation.kit import KIT, SIGNATURE, Kit
from medfusion.federation.signatures import SigningKey
from server.provision.steps import Action, put

KitType = TypeVar("KitType", bound=Kit)

_RENEWED_BEFORE_DAYS = 30
_ANY_TIME = datetime.min.replace(tzinfo=UTC)  # at which nothing has expired yet


@dataclass(frozen=True)
class Validity:
    """Until when what is issued now holds, and whether all is to be issued."""

    now: datetime
    expires: datetime
    renew: bool

    def is_due(self, expires: datetime) -> bool:
        """Whether what expires then is to be issued again.

        It is not where that gains nothing: what is issued never outlives the authority.
        """
        soon = (expires - self.now).days < _RENEWED_BEFORE_DAYS
        return self.renew or (soon and self.expires > expires)


@dataclass(frozen=True)
class Issuer:
    """Who signs kits, and what all of them hold: facts of `kit.json`, and files by name."""

    signing_key: SigningKey
    facts: Mapping[str, Any]
    contents: Mapping[str, bytes]
    validity: Validity

    def kit(
        self,
        cls: type[KitType],
        *,
        own: Mapping[str, Any],
        contents: Mapping[str, bytes],
        expires: datetime,
    ) -> KitType:
        """Return the kit that a folder should hold, with facts and files of its own."""
        held = {**self.contents, **contents}
        files = {name: hashlib.sha256(content).hexdigest() for name, content in held.items()}
        times = {"issued": self.validity.now, "expires": expires}
        return cls(**self.facts, **own, **times, files=files)

    def bring_up_to_date(
        self, wanted: KitType, folder: Path, *, readme: str
    ) -> tuple[Action, KitType]:
        """Write a kit where the folder's is missing, not whole, another or due.

        Files of the kit's own are there already. Returns what was done, and the kit now there.
        """
        before = _read(type(wanted), folder)
        if before is not None and _says(before) == _says(wanted):
            if not self.validity.is_due(before.expires):
                return "kept", before
            action: Action = "renewed"
        else:
            action = "made" if before is None else "changed"
        self._write(wanted, folder, readme)
        return action, wanted

    def _write(self, kit: Kit, folder: Path, readme: str) -> None:
        """Write a kit; the signature comes last, and before it what is there is no kit."""
        make_folder(folder)
        put(folder / "README.md", readme.encode())
        for name, content in self.contents.items():
            put(folder / name, content)
        text = document_text(kit).encode()
        put(folder / KIT, text)
        put(folder / SIGNATURE, (self.signing_key.sign("kit", text) + "\n").encode())


def has_issued(out: Path) -> bool:
    """Whether an earlier call came as far as a kit."""
    return (out / "server" / KIT).exists() or any((out / "sites").glob(f"*/{KIT}"))


def _read(cls: type[KitType], folder: Path) -> KitType | None:
    """Return the kit in a folder, also an expired one; None if it is missing or not whole."""
    try:
        return cls.read(folder, now=_ANY_TIME)
    except ConfigError:
        return None


def _says(kit: Kit) -> dict[str, Any]:
    return kit.model_dump(exclude={"issued", "expires"})
