"""Commands for a hospital engineer: ``medfusion site ...``."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfusion.cli import site_doctor, site_runs, site_start

if TYPE_CHECKING:
    from medfusion.data.check import SiteReport

app = typer.Typer(
    help="A hospital's data, its part in a federation, its runs.", no_args_is_help=True
)

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


@app.callback()
def group() -> None:
    """Prepare and check a site folder, join, serve, decide about runs, read the record."""


for _command in (
    site_start.start,
    site_doctor.doctor,
    site_runs.runs,
    site_runs.approve,
    site_runs.deny,
    site_runs.log,
):
    app.command()(_command)


@app.command()
def check(
    site: Annotated[Path, typer.Argument(help="Site folder, which holds site.toml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Tell what is wrong or odd in a site's table, images and notes; exit 1 on errors."""
    from medfusion.data.check import check_site

    if as_json:
        report = check_site(site)
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        with _image_progress() as on_image:
            report = check_site(site, on_image)
        _show(report)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def init(
    site: Annotated[Path, typer.Argument(help="Site folder to draft; made if it is not there.")],
    table: Annotated[Path, typer.Option(help="Table of studies, CSV or Parquet.")],
    task: Annotated[Path, typer.Option(help="The task.toml that all sites agreed on.")],
) -> None:
    """Draft site.toml with a guessed column mapping, for a human to finish."""
    from medfusion.data.draft import draft_site

    open_points = draft_site(site, table=table, task_path=task)
    typer.echo(f"Wrote {site / 'site.toml'}; {open_points} lines marked TODO need your eyes.")
    typer.echo(f"Then: medfusion site check {site}")


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="The kit that the coordinator sent.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The kit's fingerprint as the coordinator tells it.")
    ] = None,
) -> None:
    """Make this hospital's key in its kit, and the request to be admitted."""
    from medfusion.federation.join import join as join_federation

    joined = join_federation(kit, fingerprint=fingerprint)
    for line in (
        f"site {joined.kit.site} of federation {joined.kit.federation} at {joined.kit.address}",
        f"kit:  {joined.kit.fingerprint}",
        f"key:  {joined.key_fingerprint}",
        "",
        f"1. Send {joined.request} to the coordinator. It holds no secret.",
        "2. Call the coordinator on a number that you know and compare both fingerprints.",
        f"3. Once you are admitted: medfusion site start {kit} --site SITE",
        f"{joined.kit.node_key} is private: it never leaves this machine.",
    ):
        typer.echo(line)


@contextmanager
def _image_progress() -> Iterator[Callable[[int], None]]:
    """Show a bar over the images, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("images", total=None)
        yield lambda total: progress.update(bar, total=total, advance=1)


def _show(report: "SiteReport") -> None:
    """Print one finding a line, worst first."""
    from rich.console import Console
    from rich.text import Text

    from medfusion.data.findings import plural

    console = Console()
    for finding in report.findings:
        severity = (f"{finding.severity:8}", _COLOURS[finding.severity])
        line = Text.assemble(severity, (finding.where, "bold"), ": ", finding.message)
        console.print(line, soft_wrap=True)
    counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in report.counts.items())
    totals = ", ".join(plural(report.count(kind), kind) for kind in _COLOURS)
    console.print(Text(f"site {report.site}: {totals}", "bold"), soft_wrap=True)
    if counts:
        console.print(Text(counts), soft_wrap=True)
