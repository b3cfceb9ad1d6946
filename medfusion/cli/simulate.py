"""``medfusion simulate``: a federation on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medfusion.atomic_files import unfinished, write_atomically

if TYPE_CHECKING:
    from medfusion.config import RunConfig

_RUNS = Path("runs")
_DEMO_PATIENTS = 3000  # per hospital
_DEMO = (  # what trains in two to five minutes on two cores: few steps, large batches
    "run.name=demo",
    "run.rounds=8",
    "training.steps=8",
    "training.batch_size=256",
    "training.optimizer=sgd",
    "training.momentum=0.9",
    "training.learning_rate=1.5",
    # The budget pays for what is linear in fixed features; the network's noise is kept small.
    "training.rate_multipliers={image=0.05, tabular=0.05, text=0.05, head=0.05}",
)


def simulate(
    config: Annotated[
        Path | None, typer.Argument(help="config.toml of the run; none: the embedded demo.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; an unfinished run in it is resumed.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    backend: Annotated[
        Literal["inprocess", "ray"], typer.Option(help="ray: Flower's engine, for clusters.")
    ] = "inprocess",
    use_site_state: Annotated[
        bool, typer.Option(help="Use the sites' own state folders and secrets.")
    ] = False,
) -> None:
    """Train a federation of site folders on this machine and report on it."""
    from medfusion.cli.compose import load_sites, run_federation
    from medfusion.config import load_config

    overrides = override or []
    if config is None:
        config, overrides = _demo_cohort(out), [*_DEMO, *overrides]
    loaded = load_config(config, overrides)
    folder = out or _next_folder(loaded.run.name)
    finished = (folder / "summary.json").exists()
    sites = [] if finished else load_sites(loaded)
    resolved = _claim(folder, loaded)
    if not finished:
        typer.echo(f"run folder: {folder} (the same command with --out {folder} resumes it)")
        run_federation(
            loaded,
            sites,
            config_path=resolved,
            out=folder,
            use_site_state=use_site_state,
            backend=backend,
        )
    show(folder)


def _demo_cohort(out: Path | None) -> Path:
    """Write the embedded cohort beside the runs, once; return its config."""
    from medfusion.data.cohorts.synthetic import write_cohort

    cohort = (out.parent if out else _RUNS) / "demo-cohort"
    if not (cohort / "config.toml").exists():
        typer.echo(f"writing a synthetic cohort of four hospitals to {cohort}")
        write_cohort(cohort, sites=4, patients=_DEMO_PATIENTS, seed=0)
    return cohort / "config.toml"


def _next_folder(name: str) -> Path:
    number = 1
    while (_RUNS / f"{name}-{number}").exists():
        number += 1
    return _RUNS / f"{name}-{number}"


def _claim(folder: Path, config: "RunConfig") -> Path:
    """Write the resolved config into the run folder, or check that it holds the same one.

    A run that never finished a round has nothing to lose: its settings may be replaced.

    Raises
    ------
    ConfigError, UsageError
        If the folder holds something else.
    """
    from medfusion.config import config_text, load_config
    from medfusion.errors import ConfigError, UsageError

    path = folder / "config.toml"
    started = (folder / "checkpoint").exists() or (folder / "summary.json").exists()
    if path.exists() and started:
        if load_config(path) != config:
            raise ConfigError(
                f"{folder}: holds a run with other settings; repeat its settings to resume it, "
                "or choose another --out"
            )
        return path
    is_run = path.exists() or not folder.exists()
    if not is_run and (not folder.is_dir() or set(folder.iterdir()) - set(unfinished(path))):
        raise UsageError(f"{folder}: exists and is not a run folder; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, config_text(config), durable=True)
    return path


def show(folder: Path) -> None:
    """Print the results as a table."""
    from rich.console import Console
    from rich.table import Table

    from medfusion.data.task import Task
    from medfusion.evaluation.kinds import measures_of

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    card = json.loads((folder / "model" / "model.json").read_text(encoding="utf-8"))
    headline = measures_of(Task.parse(card["task"], where="model.json")).headline
    epsilon = "epsilon (simulated)" if card["privacy"]["simulated"] else "epsilon"
    table = Table("site", "patients", headline.name, epsilon, "delta")
    for name, site in summary["sites"].items():
        table.add_row(
            name,
            str(site["patients"]),
            _number(site[headline.key]),
            _number(site["epsilon"]),
            _number(site["delta"], "g"),
        )
    table.add_section()
    table.add_row("all", "", _number(summary[headline.key]), "", "")
    console = Console()
    console.print(table)
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def _number(value: Any, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
