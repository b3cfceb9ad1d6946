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
from figure_cells import cells, number_text
from numpy.typing import NDArray

from medfusion.comparison.compare import Comparison
from medfusion.comparison.results import RESAMPLES, Truth, headline_of
from medfusion.comparison.trials import scores_of
from medfusion.evaluation.intervals import Resampled, patient_bootstrap

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
    areas, auprc = samples.auroc, samples.auprc
    gaps = Resampled(areas.values - areas.values[:, :1])
    by_seed = [[headline_of(one[None], truth) for one in arm] for arm in scores]
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
            "auroc_macro": areas.macro(0).to_json(),
            "auprc_macro": auprc.macro(0).to_json(),
            "by_seed": by_seed[0],
            "auroc": _by_label(areas, 0, truth),
        },
        "changes": [
            {
                "name": change.name,
                "sign": change.sign,
                "settings": dict(change.arm.settings),
                "auroc_macro": areas.macro(number).to_json(),
                "difference": {
                    "auroc_macro": areas.difference(number, 0).to_json(),
                    "auprc_macro": auprc.difference(number, 0).to_json(),
                    "by_seed": [
                        None if a is None or b is None else a - b
                        for a, b in zip(by_seed[number], by_seed[0], strict=True)
                    ],
                    "auroc": _by_label(gaps, number, truth),
                },
            }
            for number, change in enumerate(changes, start=1)
        ],
    }


def _by_label(figure: Resampled, arm: int, truth: Truth) -> dict[str, Any]:
    return {name: figure.label(arm, label).to_json() for label, name in enumerate(truth.names)}


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
        number_text(full["auroc_macro"]["mean"]),
        "",
        cells(full["auroc_macro"])[1],
        _range(full["by_seed"]),
        *cells(full["auroc"][rare]),
        number_text(full["auprc_macro"]["mean"]),
    )
    for change in result["changes"]:
        difference = change["difference"]
        table.add_row(
            f"{change['sign']} {change['name']}",
            number_text(change["auroc_macro"]["mean"]),
            *cells(difference["auroc_macro"], "+"),
            _range(difference["by_seed"], "+"),
            *cells(difference["auroc"][rare], "+"),
            number_text(difference["auprc_macro"]["mean"], "+"),
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


def _range(values: Sequence[float | None], sign: str = "") -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):{sign}.3f} to {max(known):{sign}.3f}" if known else "-"


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
