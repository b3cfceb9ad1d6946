"""``FEDERATION.toml``: what the coordinator decides about a federation."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from medfusion.errors import ConfigError
from medfusion.federation.documents import Address, Name, Patience, Port, Version, split_address
from medfusion.options import FileSchema, Options, read_toml


class FederationInfo(Options):
    """Section ``[federation]``.

    ``address`` is where hospitals reach the server; ``control_port`` is for the server's own
    machine. ``valid_days`` is how long what is issued or renewed holds. ``versions`` are those of
    MedFusion that may take part; by default the installed one.
    """

    name: Name
    address: Address
    task: Path
    control_port: Port = 9093
    valid_days: int = Field(default=365, ge=60, le=3650)
    patience: Patience = 420
    versions: tuple[Version, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if split_address(self.address)[1] == self.control_port:
            raise ValueError(
                f"control_port = {self.control_port} must differ from the port of address: "
                "hospitals must not reach it"
            )
        return self


class SiteEntry(Options):
    """Section ``[sites.NAME]``.

    ``rejoin`` is the fingerprint of a new key, for a hospital that lost the one it was admitted
    with: whatever else is sent in its name stays refused.
    """

    revoked: bool = False
    rejoin: Annotated[str, Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")] | None = None


class FederationFile(Options):
    """The whole of ``FEDERATION.toml``."""

    file_schema: FileSchema = 1
    federation: FederationInfo
    sites: dict[Name, SiteEntry] = Field(min_length=1)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and validate the file; paths in it are relative to it.

        Raises
        ------
        ConfigError
            Naming each offending key.
        """
        loaded = cls.parse(read_toml(path), where=str(path))
        info = loaded.federation
        task = info.model_copy(update={"task": path.parent / info.task})
        return loaded.model_copy(update={"federation": task})

    def versions(self, installed: str) -> tuple[str, ...]:
        """Return the versions of MedFusion that may take part.

        Raises
        ------
        ConfigError
            If the one installed here is not among those that the file names.
        """
        named = self.federation.versions or (installed,)
        if installed not in named:
            raise ConfigError(
                f"federation.versions = {list(named)}: expected MedFusion {installed}, which is "
                "installed here, among them"
            )
        return named

    def is_revoked(self, site: str) -> bool:
        """Whether a site may no longer take part: it is marked so, or was taken out."""
        return site not in self.sites or self.sites[site].revoked
