"""From an ablation's scores to ``ablation.json``, a table, and a picture.

Legend: A arms (the full model first), S seeds, N test studies, L labels, R resamples.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_arms import Change
from numpy.typing import NDArray

from medfusion.comparison.compare import Comparison
from medfusion.comparison.results import RESAMPLES, Truth, auroc_macro
from medfusion.comparison.trials import scores_of
from medfusion.evaluation.intervals import patient_bootstrap

Floats = NDArray[np.floating[Any]]


def result_of(
    plan: Comparison, changes: Sequence[Change], out: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of ``ablation.json``.

    Every ``difference`` is the changed arm minus the full model, on the same test patients and
    the same resamples of them; ``by_seed`` repeats the macro difference for each pair of runs.
    """
    scores = np.stack(
        [
            np.stack([np.concatenate([scores_of(t, out=out) for t in seed]) for seed in arm])
            for arm in plan.trials
        ]
    )
    truth = plan.truth
    samples = patient_bootstrap(
        scores,
        truth.labels,
        truth.known,
        truth.patients,
        groups=truth.folds,
        resamples=RESAMPLES,
    )
    areas_RAL = samples.auroc.values
    macro_RA, auprc_RA = _mean_of_known(areas_RAL), _mean_of_known(samples.auprc.values)
    by_seed = [[auroc_macro(one[None], truth) for one in arm] for arm in scores]
    rare = _rarest(truth)
    return {
        "schema": 1,
        **about,
        "seeds": plan.seeds,
        "folds": plan.folds,
        "resamples": RESAMPLES,
        "n_patients": len(np.unique(truth.patients)),
        "rare_label": rare,
        "full": {
            "auroc_macro": interval(macro_RA[:, 0]),
            "auprc_macro": interval(auprc_RA[:, 0]),
            "by_seed": by_seed[0],
            "auroc": _by_label(areas_RAL[:, 0], truth),
        },
        "changes": [
            {
                "name": change.name,
                "sign": change.sign,
                "settings": dict(change.arm.settings),
                "auroc_macro": interval(macro_RA[:, number]),
                "difference": {
                    "auroc_macro": interval(macro_RA[:, number] - macro_RA[:, 0]),
                    "auprc_macro": interval(auprc_RA[:, number] - auprc_RA[:, 0]),
                    "by_seed": [
                        None if a is None or b is None else a - b
                        for a, b in zip(by_seed[number], by_seed[0], strict=True)
                    ],
                    "auroc": _by_label(areas_RAL[:, number] - areas_RAL[:, 0], truth),
                },
            }
            for number, change in enumerate(changes, start=1)
        ],
    }


def interval(samples: Floats) -> dict[str, Any]:
    """Return the cohort's own figure (the first sample) and the 95% interval of the resamples."""
    resampled = samples[1:][~np.isnan(samples[1:])]
    if np.isnan(samples[0]) or not len(resampled):
        return {"mean": None, "ci95": None}
    return {"mean": float(samples[0]), "ci95": np.percentile(resampled, [2.5, 97.5]).tolist()}


def _by_label(samples_RL: Floats, truth: Truth) -> dict[str, Any]:
    return {name: interval(samples_RL[:, label]) for label, name in enumerate(truth.names)}


def _mean_of_known(values_RAL: Floats) -> Floats:
    """Return the mean [R, A] over the labels that have a figure."""
    known = ~np.isnan(values_RAL)
    total, count = np.where(known, values_RAL, 0.0).sum(axis=2), known.sum(axis=2)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _rarest(truth: Truth) -> str:
    """Return the label with the fewest positives among those that have both classes."""
    positives = (truth.labels * truth.known).sum(axis=0)
    negatives = truth.known.sum(axis=0) - positives
    ranked = np.where((positives > 0) & (negatives > 0), positives, np.inf)
    return truth.names[int(np.argmin(ranked))]


def write_result(result: dict[str, Any], out: Path) -> None:
    """Write ``ablation.json`` and ``ablation.html`` into ``out``."""
    partial = out / ".ablation.json.partial"
    partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, out / "ablation.json")
    (out / "ablation.html").write_text(_picture(result), encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Print the differences as a table, in the order of the arms."""
    from rich.console import Console
    from rich.table import Table

    rare = result["rare_label"]
    table = Table("arm", "macro AUROC", "minus full", "95% CI", "by seed", rare, "95% CI", "AUPRC")
    full = result["full"]
    table.add_row(
        "full",
        _number(full["auroc_macro"]["mean"]),
        "",
        _cells(full["auroc_macro"])[1],
        _range(full["by_seed"]),
        *_cells(full["auroc"][rare]),
        _number(full["auprc_macro"]["mean"]),
    )
    for change in result["changes"]:
        difference = change["difference"]
        table.add_row(
            f"{change['sign']} {change['name']}",
            _number(change["auroc_macro"]["mean"]),
            *_cells(difference["auroc_macro"], "+"),
            _range(difference["by_seed"], "+"),
            *_cells(difference["auroc"][rare], "+"),
            _number(difference["auprc_macro"]["mean"], "+"),
        )
    console = Console(markup=False, width=140)
    console.print(table)
    console.print(
        f"{result['n_patients']} test patients; {result['seeds']} seeds; intervals from "
        f"{result['resamples']} resamples of patients, paired.\n"
        f"- takes a part away, + sets options. First row: figures; others, from 'minus full' on: "
        f"differences to the full model. {rare} is the rarest label.",
        highlight=False,
    )


def _cells(figure: dict[str, Any], sign: str = "") -> tuple[str, str]:
    if figure["ci95"] is None:
        return _number(figure["mean"], sign), "-"
    return _number(figure["mean"], sign), " to ".join(_number(x, sign) for x in figure["ci95"])


def _range(values: Sequence[float | None], sign: str = "") -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):{sign}.3f} to {max(known):{sign}.3f}" if known else "-"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else format(value, f"{sign}.3f")


def _picture(result: dict[str, Any]) -> str:
    """Return a page with the differences and their intervals, macro and for the rare label."""
    import plotly.graph_objects as go

    names = [f"{'without' if c['sign'] == '-' else 'with'} {c['name']}" for c in result["changes"]]
    rows = np.arange(len(names))
    differences = [change["difference"] for change in result["changes"]]
    rare = result["rare_label"]
    series = {
        "macro AUROC": ([d["auroc_macro"] for d in differences], 0.12, "#0b6fae"),
        f"AUROC of {rare} (rarest)": ([d["auroc"][rare] for d in differences], -0.12, "#c2560c"),
    }
    figure = go.Figure()
    for name, (figures, shift, color) in series.items():
        figure.add_trace(_forest(go, name, figures, rows + shift, color))
    seeds = [(x, y) for y, d in zip(rows, differences, strict=True) for x in d["by_seed"]]
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in seeds],
            y=[y + 0.12 for _, y in seeds],
            mode="markers",
            name="macro, each seed",
            marker={"symbol": "line-ns-open", "size": 9, "color": "#6b7785"},
        )
    )
    figure.add_vline(x=0, line={"color": "#1f2a37", "width": 1})
    figure.update_yaxes(tickvals=rows, ticktext=names, autorange="reversed", zeroline=False)
    figure.update_layout(
        title=f"{result['cohort']}: AUROC minus that of the full model, 95% paired intervals",
        xaxis_title="left of 0: worse than the full model",
        template="plotly_white",
        height=200 + 48 * len(names),
        margin={"l": 20},
    )
    page: str = figure.to_html(include_plotlyjs=True)
    return page


def _forest(go: Any, name: str, figures: list[dict[str, Any]], rows: Floats, color: str) -> Any:
    known = [i for i, figure in enumerate(figures) if figure["ci95"] is not None]
    return go.Scatter(
        x=[figures[i]["mean"] for i in known],
        y=rows[known],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [figures[i]["ci95"][1] - figures[i]["mean"] for i in known],
            "arrayminus": [figures[i]["mean"] - figures[i]["ci95"][0] for i in known],
        },
        mode="markers",
        name=name,
        marker={"color": color, "size": 9},
    )
