"""The same apps on Flower's Ray engine, for machines and clusters that Ray manages."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfusion.errors import ConfigError
from medfusion.simulation import NodeFactory, run_config

_opened: dict[tuple[str, str], ClientApp] = {}
"""Nodes that this process has opened, by run folder and site: an actor keeps them warm."""


class _SiteApps(ClientApp):
    """Passes each message to the app of the site whose turn the partition id names."""

    def __init__(self, run: str, sites: Mapping[str, NodeFactory]) -> None:
        super().__init__()
        self._run = run
        self._sites = {name: sites[name] for name in sorted(sites)}

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as the site does."""
        name = list(self._sites)[int(str(context.node_config["partition-id"]))]
        key = (self._run, name)
        if key not in _opened:
            _opened[key] = self._sites[name]()
        return _opened[key](message, context)


def run_on_ray(
    server: ServerApp,
    sites: Mapping[str, NodeFactory],
    *,
    config: Path,
    out: Path,
    simulated: bool,
) -> None:
    """Run the coordinator's app with the sites' apps on Ray; arguments as `run_in_process`.

    Raises
    ------
    ConfigError
        If Ray is not installed.
    """
    try:
        import ray  # noqa: F401 -- only whether it is there
    except ImportError:
        raise ConfigError(
            "--backend ray needs Ray: install the extra with pip install 'medfusion[ray]'"
        ) from None
    from flwr.simulation import run_simulation

    failures: list[BaseException] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower passes an empty run_config here, and runs this in a thread whose errors it logs.
        context.run_config = run_config(config=config, out=out, simulated=simulated)
        try:
            server(grid, context)
        except BaseException as error:
            failures.append(error)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            app,
            _SiteApps(str(out), sites),
            num_supernodes=len(sites),
            backend_config={"client_resources": {"num_cpus": 1}},
        )
    if failures:
        raise failures[0]
