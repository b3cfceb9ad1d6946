"""``medfusion compare``: regimes and settings on the same test patients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from medfusion.comparison.arms import Arm
    from medfusion.comparison.compare import Comparison, Observer
    from medfusion.comparison.trials import Trial
    from medfusion.config import RunConfig
    from medfusion.data.site_data import SiteData
    from medfusion.evaluation.measures import Headline

_NVIDIA = Path("/dev/nvidiactl")  # there if the machine has a GPU; asking CUDA would start it
_MOST_PAIRS_SHOWN = 15
_PIPED_WIDTH = 100  # of the tables, in characters, where no terminal has a say
_MOST_AT_ONCE = 4  # runs side by side: each needs memory, so further cores speed up the runs


def compare(
    config: Annotated[Path, typer.Argument(help="config.toml of the run.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the comparison; finished runs in it are used again.")
    ],
    override: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    regimes: Annotated[
        str, typer.Option(help="Some of pooled, local, federated, personalised, by commas.")
    ] = "pooled,local,federated",
    vary: Annotated[
        list[str] | None,
        typer.Option(help="KEY=A,B,...; several cross; a list is written A+B."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each arm, with seeds run.seed, run.seed + 1, ...")
    ] = 1,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Test every patient once in K folds; none: the sites' split."),
    ] = None,
) -> None:
    """Compare regimes and settings on the same test patients, with paired intervals."""
    from medfusion.cli.compose import load_sites
    from medfusion.comparison.arms import plan_arms
    from medfusion.comparison.compare import Comparison, check_folder
    from medfusion.comparison.page import build_comparison_page

    arms = plan_arms(
        config,
        overrides=override or [],
        regimes=[name.strip() for name in regimes.split(",")],
        vary=vary or [],
    )
    check_folder(out)
    sites = load_sites(arms[0].config)
    plan = Comparison.plan(arms, sites, seeds=seeds, folds=folds)
    result = run_plan(plan, out)
    page = build_comparison_page(out, result, plan.truth.measures, name=arms[0].config.run.name)
    _show(plan, result, page)


def run_plan(plan: "Comparison", out: Path) -> dict[str, Any]:
    """Do what is not done yet of a comparison, with progress shown; return ``compare.json``."""
    _prepare_to_fork()
    for first_seed, *_ in plan.trials:
        _check(first_seed)
    with _progress(len(plan.distinct_trials), plan.truth.measures.headline) as observer:
        return plan.run(lambda trials: _finish_all(trials, out), out, observer)


def _prepare_to_fork() -> None:
    """Load what every run needs, and keep this process free of threads.

    A pool of OpenMP threads, once started here, would be missing in forked processes and hang
    them.
    """
    import torch
    import torch._dynamo  # optimisers load it, which takes a second

    torch.set_num_threads(1)


def _check(trials: "Sequence[Trial]") -> None:
    """Refuse what the coordinator or a Node would refuse, before anything runs.

    Raises
    ------
    ConfigError, FederationError
        As they would.
    """
    from client.node.policy import check_settings
    from medfusion.data.task import Task
    from medfusion.errors import ConfigError
    from medfusion.models.registry import build_model
    from medfusion.privacy.run_plan import run_plan
    from server.run_state import run_settings
    from server.strategies import build_strategy

    config = trials[0].config
    task = Task.load(config.run.task)
    build_model(config.model, task, seed=config.run.seed)
    quorum = config.server.min_sites
    build_strategy(config.strategy, min_sites=quorum)
    settings = run_settings(config, task)
    for trial in trials:
        if len(trial.sites) < quorum:
            raise ConfigError(f"server.min_sites = {quorum}: found only {len(trial.sites)} sites")
        for site in trial.sites:
            policy, patients = site.config.policy, site.patients_public
            check_settings(settings, site.task, policy, patients_public=patients, simulated=True)
            run_plan(settings, task, patients_public=patients, delta=policy.delta)


def _finish_all(trials: "Sequence[Trial]", out: Path) -> "Iterator[Trial]":
    """Finish runs side by side; on a machine with a GPU, one after another."""
    from medfusion.comparison.processes import side_by_side
    from medfusion.comparison.trials import finish

    at_once = 1 if _NVIDIA.exists() else _MOST_AT_ONCE
    return side_by_side(trials, lambda trial: finish(trial, _run, out=out), at_once=at_once)


def _run(
    config: "RunConfig",
    sites: "Sequence[SiteData]",
    *,
    config_path: Path,
    out: Path,
    cache: Path,
) -> None:
    """Run one federation; what it says goes to ``log.txt`` in its folder."""
    import shutil

    from medfusion.cli.compose import run_federation
    from medfusion.comparison.trials import sites_differ

    for site in sites:
        _link_cache(out / "state" / site.name / "cache", cache / site.name)
    with (out / "log.txt").open("a", encoding="utf-8") as log, redirect_stderr(log):
        run_federation(config, sites, config_path=config_path, out=out)
    if sites_differ(config):
        _keep_delivered(sites, out)
    # There may be hundreds of runs: keep no state, finished checkpoint, or report of megabytes.
    (out / "report.html").unlink(missing_ok=True)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    shutil.rmtree(out / "state")


def _keep_delivered(sites: "Sequence[SiteData]", out: Path) -> None:
    """Copy the sites' models out of their state, all or none: without them the run is not done."""
    import shutil

    from medfusion.comparison.trials import DELIVERED

    partial = out / f".{DELIVERED}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for site in sites:
        (model,) = (out / "state" / site.name / "models").iterdir()
        shutil.copytree(model, partial / site.name)
    partial.rename(out / DELIVERED)


def _link_cache(link: Path, target: Path) -> None:
    """Let a Node's state folder use the image cache that all runs share."""
    link.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target.resolve())


@contextmanager
def _progress(total: int, headline: "Headline") -> "Iterator[Observer]":
    """Show a line for each finished arm and, on a terminal, a bar over the runs."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)  # this very stream: a run's own is redirected
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    ) as bar:
        runs = bar.add_task("", total=total)
        done: set[str] = set()

        class Lines:
            def trial_done(self, trial: "Trial") -> None:
                done.add(trial.name)
                bar.update(runs, completed=len(done))

            def arm_done(self, index: int, arm: "Arm", figure: float | None) -> None:
                text = f"arm {index} ({arm}): {headline.name} {_number(figure)}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield Lines()


def _show(plan: "Comparison", result: dict[str, Any], page: Path) -> None:
    """Print arms, labels and differences as tables."""
    from rich.console import Console

    console = Console(markup=False)  # names may hold brackets
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    headings = _headings(result["arms"])
    console.print(_arms_table(result["arms"], headings, plan.truth.measures.headline.key))
    by_label = {macro: key for key, macro in plan.truth.measures.by_label.items()}
    macro = plan.truth.measures.headline.key
    macro = macro if macro in by_label else "auroc_macro"
    if macro in by_label and macro in headings:
        told = _labels_table(result["arms"], plan.truth.names, by_label[macro], headings[macro])
        console.print(told)
    for index, arm in enumerate(result["arms"]):
        if len(arm["cross_site"]) > 1:
            console.print(_cross_site_table(index, arm, plan.truth.measures.headline))
    differences = result["differences"]
    if len(differences) > _MOST_PAIRS_SHOWN:
        differences = [pair for pair in differences if pair["b"] == 0]
    if differences:
        console.print(_differences_table(differences, headings))
    tested = f"each tested once in {plan.folds} folds" if plan.folds else "in the sites' test parts"
    seeds = "1 seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    ranks = plan.folds and "auroc_macro" in headings
    ranked = "; patients are ranked within a fold" if ranks else ""
    console.print(
        f"{result['n_patients']} patients, {tested}{ranked}; {seeds}; intervals from "
        f"{result['resamples']} resamples of patients\n{page.with_suffix('.json')}\n{page}",
        highlight=False,
        soft_wrap=True,
    )


def _headings(arms: list[dict[str, Any]]) -> dict[str, str]:
    """Return the figures that some arm has, by key, in the order of their columns."""
    from medfusion.evaluation.figure_names import FIGURE_NAMES as NAMES

    there = {key for arm in arms for key in NAMES if arm.get(key, {}).get("mean") is not None}
    return {key: name for key, name in NAMES.items() if key in there}


def _arms_table(arms: list[dict[str, Any]], figures: dict[str, str], worst: str) -> "Table":
    from rich.table import Table

    from medfusion.comparison.arms import shown

    keys = list(arms[0]["settings"])
    table = Table(title="Means over labels", title_justify="left")
    names = [f"{name} (95% CI)" if key == worst else name for key, name in figures.items()]
    headings = ("arm", "regime", *keys, *names, "worst site")
    for heading in headings:  # where it gets narrow, settings and names of sites break
        table.add_column(heading, no_wrap=heading not in {*keys, "worst site"}, overflow="fold")
    for index, arm in enumerate(arms):
        table.add_row(
            str(index),
            arm["regime"],
            *(shown(arm["settings"][key]) for key in keys),
            *(_figure(arm[k]) if k == worst else _number(arm[k]["mean"]) for k in figures),
            _worst(arm["worst_site"], worst),
        )
    return table


def _worst(site: dict[str, Any] | None, key: str) -> str:
    return f"{_number(site[key])} {site['site']}" if site else "-"


def _labels_table(
    arms: list[dict[str, Any]], labels: "Sequence[str]", key: str, figure: str
) -> "Table":
    from rich.table import Table

    table = Table("arm", *labels, title=f"{figure} by label", title_justify="left")
    for index, arm in enumerate(arms):
        table.add_row(str(index), *(_number(arm[key][name]["mean"]) for name in labels))
    return table


def _cross_site_table(index: int, arm: dict[str, Any], headline: "Headline") -> "Table":
    """Return each site's own models (rows) at every site (columns)."""
    from rich.table import Table

    rows = arm["cross_site"]
    title = f"{headline.name} of arm {index}: trained at the row's site, tested at the column's"
    table = Table("trained at", *next(iter(rows.values())), title=title, title_justify="left")
    for name, tested in rows.items():
        table.add_row(name, *(_figure(figure) for figure in tested.values()))
    return table


def _differences_table(pairs: list[dict[str, Any]], keys: dict[str, str]) -> "Table":
    from rich.table import Table

    table = Table(title="Differences (95% CI)", title_justify="left")
    for heading in ("arm", "minus", *keys.values()):
        table.add_column(heading, no_wrap=heading in {"arm", "minus"})
    for pair in pairs:
        figures = (_figure(pair[key], "+.3f") for key in keys)
        table.add_row(str(pair["a"]), str(pair["b"]), *figures)
    return table


def _figure(figure: dict[str, Any], form: str = ".3f") -> str:
    """Return a figure and its interval as one cell."""
    mean = _number(figure["mean"], form)
    if figure["ci95"] is None:
        return mean
    return f"{mean} ({' to '.join(_number(end, form) for end in figure['ci95'])})"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
