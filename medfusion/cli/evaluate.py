"""``medfusion evaluate``: a model on the test patients of one site."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from medfusion.evaluation.measures import Headline

_PIPED_WIDTH = 120  # of the tables, in characters, where no terminal has a say


def evaluate(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder with model.safetensors and model.json.")
    ],
    site: Annotated[Path, typer.Argument(help="Site folder, which holds site.toml.")],
    by: Annotated[
        list[str] | None,
        typer.Option(help="Also by group of a feature: sex, or age:40,60; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a model on a site's test patients; the figures stay at the site."""
    from client.node.state import NodeState
    from medfusion.data.site_data import load_site_data
    from medfusion.data.split import TEST
    from medfusion.errors import DataError
    from medfusion.evaluation.fairness import grouping_of, subgroups_json
    from medfusion.evaluation.kinds import measures_of
    from medfusion.models.saved import load_model
    from medfusion.scoring import calibrated, check_same_task, score_part

    saved = load_model(model_dir)
    data = load_site_data(site)
    check_same_task(saved.task, data)
    studies = data.part(TEST)
    if not len(studies):
        raise DataError(
            f"site {data.name!r}: expected test patients, found none after the split; see "
            "[split] of the task"
        )
    groupings = [grouping_of(text, data.task, studies.features) for text in by or []]
    scores = score_part(saved, data, TEST, cache=NodeState(data.state).cache)
    measures = measures_of(data.task)
    raw = (scores.logits, scores.labels, scores.known, scores.patients)
    result = {"schema": 1, "site": data.name, **measures.held_out(*raw)}
    result |= calibrated(saved, scores)
    if groupings:
        least = data.config.policy.min_patients
        result["subgroups"] = [
            subgroups_json(one, measures, *raw, min_patients=least) for one in groupings
        ]
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(result, measures.headline)


def _show(result: dict[str, Any], headline: "Headline") -> None:
    """Print the figures as tables."""
    from rich.console import Console

    from medfusion.evaluation.figure_names import OF_OTHERS

    console = Console(markup=False)  # names may hold brackets
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(
        f"site {result['site']}: {result['patients']} test patients, {result['studies']} studies",
        highlight=False,
    )
    if "labels" in result:
        console.print(_labels_table(result))
    if "calibration" in result:
        console.print(_calibration_table(result["calibration"]))
    for key in (key for key in OF_OTHERS if key in result):
        unit = result.get("unit", "") if key in ("mae", "rmse") else ""
        figure, interval = _interval(result[key])
        console.print(f"{key}: {figure} {unit} (95% CI {interval})", highlight=False)
    for grouping in result.get("subgroups", ()):
        console.print(_groups_table(grouping, headline))


def _labels_table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    figures = ("AUROC", "95% CI", "AUPRC", "Brier", "ECE", "sens@spec .9", "spec@sens .9")
    table = Table("label", *figures, "1", "0", "blank", box=None, pad_edge=False)
    for name, row in result["labels"].items():
        counts = (str(row[key]) for key in ("positives", "negatives", "unknown"))
        table.add_row(name, *_figures(row["auroc"], row), *counts)
    table.add_row(
        "mean", *_figures(result["auroc_macro"], {**result, "auprc": result["auprc_macro"]})
    )
    return table


def _calibration_table(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    title = f"calibrated ({found['method']}), sets for {found['wanted_coverage']:.0%}"
    columns = ("label", "ECE before", "after", "coverage", "set size", "sensitivity", "specificity")
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    keys = ("ece_before", "ece_after", "coverage", "set_size", "sensitivity", "specificity")
    for name, row in (*found["labels"].items(), ("all", found)):
        table.add_row(name, *(_number(row.get(key)) for key in keys))
    return table


def _figures(auroc: dict[str, Any], others: dict[str, Any]) -> tuple[str, ...]:
    rest = (_number(others[key]) for key in ("auprc", "brier", "ece"))
    points = ("sensitivity_at_90_specificity", "specificity_at_90_sensitivity")
    return (*_interval(auroc), *rest, *(_number(others[key]["mean"]) for key in points))


def _groups_table(grouping: dict[str, Any], headline: "Headline") -> "Table":
    """Return the headline figure of each group and its gap to the others."""
    from rich.table import Table

    columns = (grouping["by"], "patients", headline.name, "95% CI", "minus others", "95% CI")
    caption = f"no figures of fewer than {grouping['min_patients']} patients"
    table = Table(*columns, box=None, pad_edge=False, caption=caption, caption_justify="left")
    nothing = {headline.key: {"mean": None, "ci95": None}}
    for group in grouping["groups"]:
        pair = (_interval((group[key] or nothing)[headline.key]) for key in ("figures", "gaps"))
        table.add_row(group["group"], str(group["patients"]), *(one for two in pair for one in two))
    return table


def _interval(figure: dict[str, Any]) -> tuple[str, str]:
    ends = " to ".join(_number(end) for end in figure["ci95"]) if figure["ci95"] else "-"
    return _number(figure["mean"]), ends


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
