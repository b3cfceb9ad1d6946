"""``medfusion site doctor``: why a hospital's part does not work."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.doctor.checks import Check

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def doctor(
    kit: Annotated[Path, typer.Argument(help="The site's kit.")],
    site: Annotated[
        Path | None, typer.Option(help="Site folder, to check it and this machine for it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell why this site does not work; exit 1 if a check failed. Changes nothing."""
    from client.doctor.examine import examine

    checks = examine(kit.resolve(), None if site is None else site.resolve())
    if as_json:
        typer.echo(json.dumps(_document(checks), indent=2))
    else:
        _show(checks)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


def _document(checks: "list[Check]") -> dict[str, object]:
    from dataclasses import asdict

    named = [{"check": found.pop("name"), **found} for found in map(asdict, checks)]
    return {"schema": 1, "checks": named}


def _show(checks: "list[Check]") -> None:
    """Print one check a line, and below it what to do."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for check in checks:
        status = (f"{check.status:8}", _COLOURS[check.status])
        line = Text.assemble(status, (f"{check.name:10}", "bold"), check.found)
        console.print(line, soft_wrap=True)
        if check.remedy:
            console.print(Text(f"{'':18}-> {check.remedy}"), soft_wrap=True)
