"""``medfusion privacy``: what a site's ledger holds, for the people of the hospital."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medfusion.data.site import Site
    from medfusion.privacy.ledger_book import Book
    from medfusion.privacy.plan_costs import PlanCosts

_BAR = 40  # characters for the whole of max_epsilon


def privacy(
    site: Annotated[Path, typer.Argument(help="Site folder, which holds site.toml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="config.toml of a planned run: how many rounds fit?")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value of the planned run.")
    ] = None,
) -> None:
    """Tell what left a site and when, what it cost, and what is left of its epsilon."""
    from medfusion.data.site import load_site
    from medfusion.privacy.ledger_statement import planned, statement
    from medfusion.privacy.renyi_filter import Gate

    opened = load_site(site)
    policy = opened.config.policy
    gate = Gate(max_epsilon=policy.max_epsilon, delta=policy.delta)
    book = _book(opened)
    result = statement(book, gate, site=opened.name)
    if config is not None:
        run, costs = _planned_run(opened, config, override or [])
        result["planned"] = planned(book, gate, costs, run=run)
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(result)


def _book(site: "Site") -> "Book":
    """Read a site's ledger; one that never was is empty, and is not begun here.

    Raises
    ------
    LedgerError
        If it is not as it was left.
    """
    from contextlib import closing

    from medfusion.privacy.ledger import Ledger
    from medfusion.privacy.ledger_book import Book
    from medfusion.privacy.ledger_file import LEDGER
    from medfusion.privacy.ledger_witness import default_witnesses, refuse_if_witnessed

    witnesses = default_witnesses()
    if not (site.state / LEDGER).exists():
        refuse_if_witnessed(witnesses, site.state, site=site.name)
        return Book()
    with closing(Ledger(site.state, site=site.name, witnesses=witnesses)) as ledger:
        return ledger.book


def _planned_run(site: "Site", path: Path, overrides: list[str]) -> tuple[str, "PlanCosts"]:
    """Return a planned run's id, and what its plan at this site pays for.

    Raises
    ------
    ConfigError
        If the run is refused, or does without privacy.
    """
    from medfusion.config import load_config
    from medfusion.errors import ConfigError
    from medfusion.privacy.plan_costs import PlanCosts
    from medfusion.privacy.run_plan import run_plan
    from server.run_state import run_settings

    settings = run_settings(load_config(path, overrides), site.task)
    patients, delta = site.config.site.patients_public, site.config.policy.delta
    plan = run_plan(settings, site.task, patients_public=patients, delta=delta)
    if plan is None:
        raise ConfigError(f"{path}: privacy.enabled = false: such a run has no plan to fit")
    return settings.run_id, PlanCosts.of(plan)


def _show(result: dict[str, Any]) -> None:
    """Print the releases and runs as tables, then the sum as a bar."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)  # names may hold brackets
    releases = Table("row", "UTC", "run", "what", "round", "epsilon alone", box=None)
    for entry in result["releases"]:
        what = entry["kind"] if entry["stored"] else f"{entry['kind']} (not sent)"
        number = str(entry["round"]) if entry["round"] else "-"
        figure = _number(entry["epsilon"])
        releases.add_row(str(entry["row"]), _time(entry["at"]), entry["run"], what, number, figure)
    runs = Table("run", "reserved, UTC", "what", "charged", "epsilon alone", box=None)
    for run in result["runs"]:
        for kind, part in run["kinds"].items():
            charged = f"{part['charged']} of {part['releases']}"
            runs.add_row(
                run["run"], _time(run["reserved"]), kind, charged, _number(part["epsilon"])
            )
        runs.add_row("", "", "together", "", _number(run["epsilon"]))
    for table in (releases, runs):
        if table.rows:
            console.print(table)
            console.print()
    for line in _sums(result):
        console.print(line, highlight=False, soft_wrap=True)


def _time(at: str) -> str:
    """Leave out the zone, which the heading names."""
    return at.removesuffix("+00:00").replace("T", " ")


def _sums(result: dict[str, Any]) -> list[str]:
    """Say in words what is reserved and left."""
    tight = result["fixed_in_advance"]
    lines = [
        f"site {result['site']}  {_bar(result)}  # released, + reserved, . left",
        f"reserved: epsilon {_number(result['epsilon'])} of {result['max_epsilon']:g} at delta "
        f"{result['delta']:g}; left: {result['remaining']:.3f}",
        f"with parameters fixed in advance: released {_number(tight['released'])}, reserved "
        f"{_number(tight['reserved'])}",
    ]
    if "planned" in result:
        plan = result["planned"]
        lines.append(
            f"planned run {plan['run']}: {plan['rounds_that_fit']} of {plan['rounds']} rounds fit"
        )
    return lines


def _bar(result: dict[str, Any]) -> str:
    """Draw the ceiling in parts; the released part in proportion to what is reserved."""
    reserved = round((1 - result["remaining"] / result["max_epsilon"]) * _BAR)
    tight = result["fixed_in_advance"]
    share = (tight["released"] or 0.0) / tight["reserved"] if tight["reserved"] else 1.0
    spent = round(reserved * share)
    return f"[{'#' * spent}{'+' * (reserved - spent)}{'.' * (_BAR - reserved)}]"


def _number(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.3f}"
