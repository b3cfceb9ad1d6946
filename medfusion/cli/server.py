"""Commands for the coordinator's server: ``medfusion server ...``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Run the coordinator's server.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Run the coordinator's server."""


@app.command()
def start(
    kit: Annotated[Path, typer.Argument(help="The server's kit, from `medfusion provision`.")],
    bind: Annotated[
        str | None,
        typer.Option(help="Address to listen on for hospitals; by default all, or the loopback."),
    ] = None,
    monitor_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve /healthz and /metrics on this loopback port."),
    ] = None,
) -> None:
    """Serve hospitals and runs until SIGTERM or Ctrl-C."""
    from medfusion.errors import FederationError
    from medfusion.federation.kit import ServerKit, check_version
    from medfusion.federation.versions import own_version
    from medfusion.folder_lock import held_alone
    from medfusion.logs import log_to_stderr
    from server.deployment.serve import serve

    log_to_stderr()
    found = ServerKit.read(kit.resolve())
    check_version(found, own_version())
    taken = FederationError(f"{kit}: another server runs from this kit; stop it first")
    with held_alone(kit, taken):
        serve(found, bind=bind, monitor_port=monitor_port)
