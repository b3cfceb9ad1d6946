"""Puts library, coordinator and hospital together to run a federation on this machine."""

from collections.abc import Sequence
from functools import partial
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Literal

from client.node.simulated import node_app, simulated_secret
from medfusion.config import RunConfig
from medfusion.data.site_data import SiteData, load_site_data, require_positives
from medfusion.data.split import Fold
from medfusion.errors import ConfigError, FederationError
from medfusion.privacy.run_plan import run_plan
from medfusion.simulation import run_in_process
from medfusion.simulation_ray import run_on_ray
from server.app import app as server_app
from server.rounds import run_settings


def load_sites(config: RunConfig, *, fold: Fold | None = None) -> list[SiteData]:
    """Read every site that ``[simulation] sites`` matches, in the order of their names.

    Raises
    ------
    ConfigError, DataError, FederationError
        If nothing matches, a site is not as its task says, or two sites share a name.
    """
    if config.simulation is None:
        raise ConfigError('missing section [simulation]: expected sites = "sites/*"')
    folders = sorted(Path(path) for path in glob(config.simulation.sites))
    folders = [folder for folder in folders if (folder / "site.toml").is_file()]
    if not folders:
        raise ConfigError(
            f"simulation.sites = {config.simulation.sites!r}: expected folders with a site.toml, "
            "found none"
        )
    sites = sorted((load_site_data(folder, fold=fold) for folder in folders), key=_name)
    for site in sites:
        require_positives(site)
    for one, next_one in pairwise(sites):
        if one.name == next_one.name:
            raise FederationError(
                f"expected sites of different names, found two called {one.name!r}: change "
                "[site] name in one site.toml"
            )
    return sites


def run_federation(
    config: RunConfig,
    sites: Sequence[SiteData],
    *,
    config_path: Path,
    out: Path,
    use_site_state: bool = False,
    backend: Literal["inprocess", "ray"] = "inprocess",
) -> None:
    """Run the coordinator's app with the sites' Nodes.

    Their state folders are ``out/state/NAME``, or the sites' own.
    """
    quorum = config.server.min_sites
    if len(sites) < quorum:
        raise ConfigError(f"server.min_sites = {quorum}: found only {len(sites)} sites")
    settings = run_settings(config, sites[0].task)
    for site in sites:  # plans are kept by the process, and workers inherit them
        run_plan(
            settings,
            site.task,
            patients_public=site.patients_public,
            delta=site.config.policy.delta,
        )
    factories = {
        site.name: partial(
            node_app,
            site,
            site.state if use_site_state else out / "state" / site.name,
            None if use_site_state else simulated_secret(config.run.seed, site.name),
        )
        for site in sites
    }
    run = run_on_ray if backend == "ray" else run_in_process
    run(server_app, factories, config=config_path, out=out, simulated=not use_site_state)


def _name(site: SiteData) -> str:
    return site.name
