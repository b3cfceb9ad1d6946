from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_server import free_port
from kits import write_kits
from tabular_cohort import write_ward

from medfusion.federation.kit import ServerKit, SiteKit


@dataclass(frozen=True)
class Ward:
    """A federation of which only ``north`` is admitted at the coordinator."""

    root: Path
    kits: Path

    def kit(self, site: str = "north") -> SiteKit:
        return SiteKit.read(self.kits / "sites" / site)

    @property
    def server(self) -> ServerKit:
        return ServerKit.read(self.kits / "server")

    def site(self, name: str = "north") -> Path:
        return self.root / "sites" / name


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    task = write_ward(tmp_path / "ward").parent / "task.toml"
    kits = write_kits(tmp_path / "fed", task, ["north"], strangers=["east"], port=free_port())
    return Ward(tmp_path / "ward", kits)
