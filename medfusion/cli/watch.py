"""``medfusion watch``: a run's rounds as they end."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_PAUSE = 1.0  # seconds between two looks
_MOST_ROUNDS = 20  # shown at once


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, finished or not.")],
) -> None:
    """Show a run's rounds as they end, until it is finished; Ctrl-C stops the watching only."""
    from rich.console import Console
    from rich.live import Live

    from medfusion.errors import UsageError
    from medfusion.evaluation.report.run_folder import read_rounds

    if not (run / "config.toml").is_file():
        raise UsageError(f"{run}: expected a run folder, found no config.toml in it")
    total = _rounds_planned(run / "config.toml")
    console = Console(markup=False)  # names may hold brackets
    shown = 0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            finished = (run / "summary.json").exists()  # before the rounds: it comes last
            rounds = read_rounds(run / "rounds.jsonl")
            if console.is_terminal:
                live.update(rounds_table(rounds, total), refresh=True)
            else:
                for line in rounds[shown:]:
                    typer.echo("  ".join(_cells(line, total)))
                shown = len(rounds)
            if finished:
                break
            time.sleep(_PAUSE)
    if console.is_terminal:
        console.print(rounds_table(rounds, total))
    typer.echo(f"finished: {run / 'summary.json'}, {run / 'report.html'}")


def _rounds_planned(config: Path) -> int:
    import tomllib

    from medfusion.errors import ConfigError

    try:
        return int(tomllib.loads(config.read_text(encoding="utf-8"))["run"]["rounds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{config}: expected the resolved config of a run, with rounds in [run]; {error!r}"
        ) from None


def rounds_table(rounds: Sequence[Mapping[str, Any]], total: int) -> "Table":
    """Return the last rounds as a table, the newest at the bottom."""
    from rich.table import Table

    table = Table("round", "figure", "update norm", "seconds", "MB", "hospitals")
    for line in rounds[-_MOST_ROUNDS:]:
        table.add_row(*_cells(line, total))
    table.caption = f"{len(rounds)} of {total} rounds"
    return table


def _cells(line: Mapping[str, Any], total: int) -> tuple[str, ...]:
    return (
        f"{line['round']}/{total}",
        _figure(line.get("metrics") or {}),
        f"norm {line['update_norm']:.4g}" if line.get("update_norm") is not None else "-",
        f"{line['seconds']:.1f} s",
        f"{(line['bytes_up'] + line['bytes_down']) / 1e6:.2f} MB",
        _hospitals(line["sites"]),
    )


def _figure(metrics: Mapping[str, Any]) -> str:
    """Return the figure that the round was measured by; a dash where it was not."""
    known = [(k, v) for k, v in metrics.items() if k != "auroc" and v is not None]
    return f"{known[-1][0]} {known[-1][1]:.4g}" if known else "-"


def _hospitals(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how many hospitals answered, and which did not."""
    others = [f"{name} {site['status']}" for name, site in sites.items() if site["status"] != "ok"]
    return ", ".join([f"{len(sites) - len(others)} of {len(sites)}", *others])
