"""Puts library, coordinator and hospital together to run a federation on this machine."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Literal

from client.node.simulated import forget_simulated, node_app, simulated_secret
from client.node.state import NodeState
from client.node.state_lock import alone
from medfusion.config import RunConfig
from medfusion.data.site_data import SiteData, load_site_data, require_positives
from medfusion.data.split import Fold
from medfusion.errors import ConfigError, FederationError
from medfusion.privacy.run_plan import run_plan
from medfusion.simulation import run_in_process
from medfusion.simulation_ray import run_on_ray
from server.app import app as server_app
from server.run_state import run_settings

_STATE_SUFFIX = ".state"  # of the folder that a Node makes beside its site


def load_sites(config: RunConfig, *, fold: Fold | None = None) -> list[SiteData]:
    """Read every site that ``[simulation] sites`` matches, in the order of their names.

    Raises
    ------
    ConfigError, DataError, FederationError
        If nothing matches, a folder that matches is no site, a site is not as its task says, or
        two sites share a name.
    """
    folders, others = site_folders(config)
    sites = sorted((load_site_data(folder, fold=fold) for folder in folders), key=_name)
    _refuse_unfinished(others, sites)
    for site in sites:
        require_positives(site)
    for one, next_one in pairwise(sites):
        if one.name == next_one.name:
            raise FederationError(
                f"expected sites of different names, found two called {one.name!r}: change "
                "[site] name in one site.toml"
            )
    return sites


def site_folders(config: RunConfig) -> tuple[list[Path], list[Path]]:
    """Return the folders with a ``site.toml``, and those without, but no state folders.

    Raises
    ------
    ConfigError
        If the config names no sites, or none of them is there.
    """
    if config.simulation is None:
        raise ConfigError('missing section [simulation]: expected sites = "sites/*"')
    found = sorted(Path(path) for path in glob(config.simulation.sites))
    folders = [p for p in found if p.is_dir() and not p.name.startswith(".")]
    sites = [folder for folder in folders if (folder / "site.toml").is_file()]
    if not sites:
        raise ConfigError(
            f"simulation.sites = {config.simulation.sites!r}: expected folders with a site.toml, "
            "found none"
        )
    others = [p for p in folders if p not in sites and p.suffix != _STATE_SUFFIX]
    return sites, others


def _refuse_unfinished(others: Sequence[Path], sites: Sequence[SiteData]) -> None:
    """Refuse folders that are neither sites nor hold the sites' state: a site may be forgotten."""
    states = [site.state.resolve() for site in sites]
    for folder in others:
        if not any(state.is_relative_to(folder.resolve()) for state in states):
            raise ConfigError(
                f"{folder}: matches simulation.sites and has no site.toml; draft one with "
                "`medfusion site init`, or move the folder away"
            )


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

    Their state folders are ``out/state/NAME``, with scratch ledgers that last as long as the run
    can be resumed, or the sites' own, which are then held.

    Raises
    ------
    MedFusionError
        If the run is refused or cannot go on, or a site's own state folder is in use.
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
    if not use_site_state and not (out / "checkpoint").exists():
        for site in sites:
            forget_simulated(out / "state" / site.name)
    run = run_on_ray if backend == "ray" else run_in_process
    with ExitStack() as held:
        if use_site_state:
            for site in sites:
                NodeState(site.state)  # makes the folder
                held.enter_context(alone(site.state))
        run(server_app, factories, config=config_path, out=out, simulated=not use_site_state)


def _name(site: SiteData) -> str:
    return site.name
