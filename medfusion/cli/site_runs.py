"""``medfusion site runs | approve | deny | log``: what the people of a hospital decide and see.

The commands read and write the site's state folder only, and may be called while the Node runs.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.node.approvals import Decision, RunRecord
    from client.node.audit_log import Report
    from medfusion.data.site import Site

SiteFolder = Annotated[Path, typer.Argument(help="Site folder, by default the current one.")]
Run = Annotated[str, typer.Argument(help="The run's id, or enough of its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_HERE = Path()
_COLOURS = {"waiting": "bold yellow", "approved": "green", "denied": "red"}


def runs(site: SiteFolder = _HERE, as_json: AsJson = False) -> None:
    """List the runs that this site was asked for, what they cost, and what would leave."""
    opened = _opened(site)
    found = _runs(opened)
    if as_json:
        records = [record.model_dump(mode="json") for record in found]
        document = {"schema": 1, "site": opened.name, "runs": records}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _show_runs(opened, found)


def approve(run: Run, site: SiteFolder = _HERE) -> None:
    """Let this site take part in a run, from its next request on."""
    _decide(run, site, "approved")


def deny(run: Run, site: SiteFolder = _HERE) -> None:
    """Keep this site out of a run, from its next request on; what has left stays out."""
    _decide(run, site, "denied")


def log(site: SiteFolder = _HERE, as_json: AsJson = False) -> None:
    """Print what this site was asked and answered; exit 1 if the record was changed."""
    from client.node.audit_log import AuditLog, Report

    opened = _opened(site)
    report = AuditLog(opened.state).verify() if opened.state.is_dir() else Report(())
    if as_json:
        typer.echo(json.dumps(_log_document(opened, report), indent=2))
    else:
        _show_log(report)
    if report.broken is not None:
        typer.echo(f"error: {opened.state}: line {report.broken} {report.reason}", err=True)
        raise typer.Exit(1)


def _opened(folder: Path) -> "Site":
    """Read a site's folder.

    Raises
    ------
    UsageError
        If its state belongs to another OS user: what we write there the Node could not read.
    """
    import pwd

    from medfusion.data.site import load_site
    from medfusion.errors import UsageError

    site = load_site(folder)
    if site.state.is_dir() and (owner := site.state.stat().st_uid) != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise UsageError(
            f"{site.state}: belongs to OS user {name}; expected to be called as that user: "
            f"sudo -u {name} medfusion site ..."
        )
    return site


def _runs(site: "Site") -> "list[RunRecord]":
    from client.node.approvals import runs_of

    return runs_of(site.state).all() if site.state.is_dir() else []


def _decide(run: str, folder: Path, decision: "Decision") -> None:
    """Write a decision down, and tell what it means.

    Raises
    ------
    UsageError
        If no run or several begin so.
    """
    from client.node.approvals import runs_of
    from medfusion.errors import UsageError

    site = _opened(folder)
    if not site.state.is_dir():
        raise UsageError(f"site {site.name!r}: no Node has served it yet, so there are no runs")
    record = runs_of(site.state).decide(run, decision, by=_os_user())
    typer.echo(f"site {site.name}: run {record.run_id} is {record.status}")
    typer.echo(f"  {_cost(record)}; leaves: {_leaves(record)}")


def _os_user() -> str:
    """Return who calls; through sudo also who did before, as sudo says."""
    import pwd

    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = f"#{number}"
    before = os.environ.get("SUDO_USER")
    return f"{before[:64]} as {name}" if before and before != name else name


def _show_runs(site: "Site", records: "list[RunRecord]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    if not records:
        console.print(f"site {site.name}: no runs yet")
        return
    table = Table("run", "status", "model", "rounds", "epsilon", "what leaves", box=None)
    for record in records:
        summary = record.summary
        model = " ".join(filter(None, (summary.model, summary.size)))
        table.add_row(
            Text(record.run_id, overflow="fold"),
            Text(record.status, _COLOURS[record.status]),
            f"{model} ({', '.join(summary.modalities)})",
            str(summary.rounds),
            "none" if summary.epsilon is None else f"{summary.epsilon:.2f}",
            _leaves(record),
        )
    console.print(table)
    if any(record.status == "waiting" for record in records):
        console.print("Decide: medfusion site approve RUN SITE, or site deny RUN SITE")


def _cost(record: "RunRecord") -> str:
    summary = record.summary
    if summary.epsilon is None:
        return "without privacy: what leaves is exact"
    return f"epsilon {summary.epsilon:.2f} at delta {summary.delta:g} over {summary.rounds} rounds"


def _leaves(record: "RunRecord") -> str:
    parts = (f"{part.what} x{part.times}" for part in record.summary.leaves)
    exact = "" if record.summary.epsilon is not None else " (exact, without privacy)"
    return ", ".join(parts) + exact


def _log_document(site: "Site", report: "Report") -> dict[str, Any]:
    from dataclasses import asdict

    broken = None
    if report.broken is not None:
        broken = {"line": report.broken, "reason": report.reason}
    return {
        "schema": 1,
        "site": site.name,
        "events": [asdict(event) for event in report.events],
        "broken": broken,
        "torn": report.torn,
    }


def _show_log(report: "Report") -> None:
    """Print one event a line, then the hash that a copy elsewhere would be checked against."""
    for event in report.events:
        details = " ".join(f"{key}={json.dumps(value)}" for key, value in event.details.items())
        at = event.at.removesuffix("+00:00").replace("T", " ")
        typer.echo(f"{event.number:6} {at}Z {event.event:9} {event.run or '-'} {details}".rstrip())
    if report.torn:
        typer.echo("note: the last write was cut off; the Node takes it away when it goes on")
    if report.events and report.broken is None:
        typer.echo(f"{len(report.events)} events, unchanged; last hash {report.events[-1].hash}")
