"""``medfusion provision``: the coordinator's authority, kits and admissions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.provision.steps import Step

_COLOURS = {"kept": "dim", "waiting": "yellow", "revoked": "bold red"}
_WIDTH = 200


def provision(
    federation: Annotated[
        Path, typer.Argument(metavar="FEDERATION.toml", help="Address, task and sites.")
    ],
    out: Annotated[Path, typer.Argument(help="The federation's folder; made if it is not there.")],
    renew: Annotated[
        bool, typer.Option("--renew", help="Issue again also what holds for long.")
    ] = False,
) -> None:
    """Make the kits of a federation and admit its hospitals; call again after each change."""
    from medfusion.federation.kit import ServerKit
    from server.provision.provision import provision as bring_up_to_date

    steps = bring_up_to_date(federation, out, renew=renew)
    _show(steps)
    kit = ServerKit.read(out / "server")
    typer.echo(f"kit fingerprint: {kit.fingerprint}")
    typer.echo("")
    for line in _next_steps(steps, out):
        typer.echo(line)


def _show(steps: "list[Step]") -> None:
    """Print what was done as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "", box=None)
    for step in steps:
        action = Text(step.action, _COLOURS.get(step.action, "green"))
        table.add_row(action, step.subject, step.detail)
    # Wide, so that the terminal may break a key's fingerprint but the table does not.
    Console(markup=False, highlight=False, width=_WIDTH).print(table)


def _next_steps(steps: "list[Step]", out: Path) -> list[str]:
    """Say what the coordinator does now."""
    new = {"made", "changed", "renewed"}
    lines = []
    if any(step.action == "made" and step.subject == "authority" for step in steps):
        lines.append(f"Move {out / 'authority' / 'ca.key'} to offline storage, with a backup.")
    if any(step.action in new and step.subject.startswith("kit of") for step in steps):
        lines.append(
            f"Send the new kits in {out / 'sites'}, and tell the fingerprint by telephone."
        )
    if any(step.action == "waiting" for step in steps):
        lines.append(
            f"Put the join-SITE.json that hospitals send into {out / 'requests'}; call this again."
        )
    if any(step.action == "admitted" and "key" in step.detail for step in steps):
        lines.append("Compare the key fingerprints of admitted nodes with their hospitals.")
    lines.append(f"Copy {out / 'server'} to the server, then: medfusion server start KIT")
    return lines
