"""A provisioned federation: kits for a server and for hospitals that have joined."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from medfusion.federation.join import join
from server.provision.provision import provision


def write_kits(
    folder: Path,
    task: Path,
    sites: Iterable[str],
    *,
    strangers: Iterable[str] = (),
    port: int = 9092,
    control_port: int = 9093,
) -> Path:
    """Provision a federation on the loopback and admit its sites; return the folder of kits.

    ``strangers`` have kits and keys as well, but their requests never reach the coordinator.
    """
    sites, strangers = list(sites), list(strangers)
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / "federation.toml"
    tables = "".join(f"[sites.{name}]\n" for name in (*sites, *strangers))
    description.write_text(
        f'[federation]\nname = "test"\naddress = "localhost:{port}"\ntask = "{task}"\n'
        f"control_port = {control_port}\npatience = 20\n{tables}"
    )
    kits = folder / "kits"
    provision(description, kits)
    for name in (*sites, *strangers):
        request = join(kits / "sites" / name).request
        if name in sites:
            shutil.copy(request, kits / "requests")
    provision(description, kits)
    return kits
