"""``medfusion evaluate``: a model on the test patients of one site."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def evaluate(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder with model.safetensors and model.json.")
    ],
    site: Annotated[Path, typer.Argument(help="Site folder, which holds site.toml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a model on a site's test patients; the figures stay at the site."""
    from client.node.state import NodeState
    from medfusion.data.site_data import load_site_data
    from medfusion.data.split import TEST
    from medfusion.errors import DataError
    from medfusion.evaluation.kinds import measures_of
    from medfusion.models.saved import load_model
    from medfusion.scoring import calibrated, check_same_task, score_part

    saved = load_model(model_dir)
    data = load_site_data(site)
    check_same_task(saved.task, data)
    if not len(data.part(TEST)):
        raise DataError(
            f"site {data.name!r}: expected test patients, found none after the split; see "
            "[split] of the task"
        )
    scores = score_part(saved, data, TEST, cache=NodeState(data.state).cache)
    figures = measures_of(data.task).held_out(
        scores.logits, scores.labels, scores.known, scores.patients
    )
    result = {"schema": 1, "site": data.name, **figures, **calibrated(saved, scores)}
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    """Print the figures as tables."""
    from rich.console import Console

    from medfusion.evaluation.figure_names import OF_OTHERS

    console = Console(markup=False)  # names may hold brackets
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


def _labels_table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    columns = ("label", "AUROC", "95% CI", "AUPRC", "Brier", "ECE", "1", "0", "blank")
    table = Table(*columns, box=None, pad_edge=False)
    for name, row in result["labels"].items():
        counts = (str(row[key]) for key in ("positives", "negatives", "unknown"))
        table.add_row(name, *_figures(row["auroc"], row), *counts)
    macro = {"auprc": result["auprc_macro"], "brier": result["brier"], "ece": result["ece"]}
    table.add_row("mean", *_figures(result["auroc_macro"], macro))
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
    return (*_interval(auroc), *rest)


def _interval(figure: dict[str, Any]) -> tuple[str, str]:
    ends = " to ".join(_number(end) for end in figure["ci95"]) if figure["ci95"] else "-"
    return _number(figure["mean"]), ends


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
