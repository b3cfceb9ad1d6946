"""A small federation: its file, its folder, and hospitals that join."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from medfusion.federation.join import join
from server.provision.provision import provision
from server.provision.steps import Step

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)

TASK = """
[task]
name = "heart"
kind = "multilabel"
[features.age]
kind = "numeric"
low = 0
high = 120
[labels]
names = ["ill"]
"""


class Federation:
    """The coordinator's file and folder, in a folder for tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "federation.toml"
        self.task = folder / "task.toml"
        self.out = folder / "out"
        folder.mkdir(exist_ok=True)
        self.task.write_text(TASK)
        self.write()

    def write(
        self,
        *sites: str,
        name: str = "covid-icu",
        address: str = "fl.example.org:9092",
        more: str = "",
    ) -> None:
        """Write the file; a site is a name, or a name with its keys after a line break."""
        text = f'[federation]\nname = "{name}"\naddress = "{address}"\ntask = "task.toml"\n{more}\n'
        for site in sites or ("italy", "spain"):
            section, _, keys = site.partition("\n")
            text += f"[sites.{section}]\n{keys}\n"
        self.file.write_text(text)

    def provision(self, now: datetime = NOW, *, renew: bool = False) -> list[Step]:
        return provision(self.file, self.out, renew=renew, now=now)

    def actions(self, now: datetime = NOW, *, renew: bool = False) -> dict[str, str]:
        """Provision; return what was done with what."""
        return {step.subject: step.action for step in self.provision(now, renew=renew)}

    def kit(self, site: str) -> Path:
        """Return a copy of a site's kit as the hospital has it."""
        return Path(
            shutil.copytree(
                self.out / "sites" / site, self.folder / "hospitals" / site, dirs_exist_ok=True
            )
        )

    def request(self, site: str, now: datetime = NOW) -> Path:
        """Let a hospital join; return its request, as the coordinator got it."""
        request = join(self.kit(site), now=now).request
        return Path(shutil.copy(request, self.out / "requests"))

    def files(self) -> dict[str, bytes]:
        """Return the content of every file of the federation's folder."""
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in self.out.rglob("*")
            if path.is_file()
        }
