"""Commands for a coordinator's runs: ``submit``, ``status``, ``stop``, ``resume``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfusion.federation.kit import ServerKit
    from server.deployment.runs import Runs

KitOption = Annotated[Path, typer.Option("--kit", help="The server's kit.")]
RunArgument = Annotated[str, typer.Argument(help="Name of the run.")]

_COLOURS = {"running": "cyan", "finished": "green", "failed": "bold red", "stopped": "yellow"}


def submit(
    config: Annotated[Path, typer.Argument(help="config.toml of the run.")],
    kit: KitOption,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
) -> None:
    """Sign a run and start it at the server; the hospitals decide whether they take part."""
    from medfusion.config import load_config

    runs = _runs(_kit(kit))
    name = runs.submit(load_config(config, override or []))
    typer.echo(f"run {name}: submitted; its folder is {runs.folder(name)}")
    typer.echo(f"watch it: medfusion status --kit {kit}")


def status(
    kit: KitOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell which hospitals are connected and how the runs are."""
    from server.deployment.status import status_of

    found = status_of(_kit(kit))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    sites = Table("site", "admitted until", "status", "since (UTC)")
    for site in found["sites"]:
        sites.add_row(site["site"], site["expires"][:10], site["status"], site["since"] or "-")
    runs = Table("run", "status", "rounds", "why")
    for run in found["runs"]:
        state = Text(run["status"], _COLOURS.get(run["status"], ""))
        done = f"{run['round']} of {run['rounds']}"
        runs.add_row(run["run"], state, done, Text(run["why"]))  # of a hospital's own wording
    console.print(sites)
    console.print(runs)


def stop(run: RunArgument, kit: KitOption) -> None:
    """End a run; what it has reached stays, and `medfusion resume` goes on with it."""
    _runs(_kit(kit)).stop(run)
    typer.echo(f"run {run}: stopped")


def resume(run: RunArgument, kit: KitOption) -> None:
    """Let a stopped or failed run go on after its last finished round."""
    _runs(_kit(kit)).resume(run)
    typer.echo(f"run {run}: goes on")


def _kit(folder: Path) -> "ServerKit":
    from medfusion.federation.kit import ServerKit

    return ServerKit.read(folder.resolve())


def _runs(kit: "ServerKit") -> "Runs":
    from server.deployment.runs import Runs
    from server.deployment.serve import flower_of

    return Runs(kit, flower_of(kit))
