"""The report's figures as plotly.js data, all text escaped.

A figure is ``{"id", "title", "note", "data", "layout"}``; plotly.js reads a subset of HTML in
its texts, so names from outside are escaped here as in the page.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from medfusion.evaluation.metrics import CALIBRATION_BINS, FloatArray, reliability, sigmoid
from medfusion.evaluation.report.budget import Budget
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.score_histograms import bin_centres

Figure = dict[str, Any]
Trace = dict[str, Any]

INK, MUTED, GRID = "#1f2a37", "#6b7785", "#e6eaef"
# Apart for most colour-blind readers (after Okabe and Ito, 2008), darkened for white paper.
PALETTE = ("#0b6fae", "#c2560c", "#00806a", "#a84f86", "#8a6d00", "#3f8fc4", "#555f6b", "#7a4fc0")


def curves_by_round(run: Run) -> list[Figure]:
    """Return curves of what the rounds recorded; a curve needs two points."""
    rounds = run.rounds
    numbers = [line["round"] for line in rounds]
    up, down = ([line[key] / 1e6 for line in rounds] for key in ("bytes_up", "bytes_down"))
    figures = [
        _headline_by_round(run),
        _figure(
            "update-norm",
            "Update norm",
            [_line(numbers, [line.get("update_norm") for line in rounds], "L2 norm")],
            y="L2 norm of the global change",
            x="round",
            from_zero=True,
        ),
        _seconds(run, numbers),
        _figure(
            "bytes",
            "Traffic, all hospitals",
            [
                _line(numbers, down, "to the hospitals"),
                _line(numbers, up, "to the server", color=PALETTE[1], dash="dot"),
            ],
            y="MB",
            x="round",
            from_zero=True,
        ),
    ]
    return [figure for figure in figures if _most_points(figure) >= 2]


def _headline_by_round(run: Run) -> Figure:
    measured = [(line["round"], line["metrics"]) for line in run.rounds if line.get("metrics")]
    numbers = [number for number, _ in measured]
    headline = run.measures.headline
    if headline.key != "auroc_macro":
        line = _line(numbers, [m[headline.key] for _, m in measured], headline.name)
        y, name = headline.name, headline.key
        return _figure(name, headline.name, [line], y=y, x="round", from_zero=True)
    traces = [
        _background(numbers, [m["auroc"].get(label) for _, m in measured], label)
        for label in run.labels
    ]
    macro = _line(numbers, [m["auroc_macro"] for _, m in measured], "mean of the labels")
    figure = _figure("auroc", "AUROC", [*traces, macro], y="AUROC", x="round")
    figure["note"] = "Blue: mean of the labels. Grey: each label."
    return figure


def _seconds(run: Run, numbers: list[int]) -> Figure:
    """Whole rounds, and each hospital's own time where there are few enough to tell apart."""
    names = sorted({name for line in run.rounds for name in line["sites"]})
    shown = names if len(names) <= 12 else []
    traces = [
        _background(
            numbers, [line["sites"].get(name, {}).get("seconds") for line in run.rounds], name
        )
        for name in shown
    ]
    traces.append(_line(numbers, [line["seconds"] for line in run.rounds], "whole round"))
    figure = _figure("seconds", "Seconds", traces, y="seconds", x="round", from_zero=True)
    figure["note"] = "Blue: whole round. Grey: until each hospital answered." if shown else ""
    return figure


def roc_curves(run: Run, intervals: Sequence[str]) -> Figure:
    """Return one ROC curve for each label that has both classes; ``intervals`` go with names."""
    assert run.counts is not None
    traces = [_background([0, 1], [0, 1], "chance", dash="dash")]
    for row, (label, text) in enumerate(zip(run.labels, intervals, strict=True)):
        negative, positive = run.counts[row]
        if negative.sum() <= 0 or positive.sum() <= 0:
            continue
        x, y = _drop_inner(_rates(negative), _rates(positive))
        trace = _line(x.tolist(), y.tolist(), label, color=PALETTE[row % len(PALETTE)])
        trace["mode"] = "lines"
        trace["name"] += f"  <span style='color:{MUTED}'>{html.escape(text, quote=False)}</span>"
        trace["hovertemplate"] = "false positive rate %{x:.2f}, true positive rate %{y:.2f}"
        traces.append(trace)
    figure = _figure(
        "roc", "ROC by label", traces, x="false positive rate", y="true positive rate", height=460
    )
    return _square(figure, legend={"x": 0.99, "xanchor": "right", "y": 0.03, "yanchor": "bottom"})


def _rates(counts: FloatArray) -> FloatArray:
    """Return the share of studies at or above each score, from none of them to all [S + 1]."""
    return np.concatenate([[0.0], np.cumsum(counts[::-1]) / counts.sum()])


def _drop_inner(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Drop points equal to the one before: empty bins."""
    keep = np.concatenate([[True], (np.diff(x) > 0) | (np.diff(y) > 0)])
    return x[keep].round(5), y[keep].round(5)


def reliability_diagram(run: Run) -> Figure:
    """Return predicted against observed risk, over all labels and (on demand) for each."""
    assert run.counts is not None
    probabilities = sigmoid(bin_centres(run.counts.shape[-1]))
    groups = [("all labels", run.counts.sum(axis=0), PALETTE[0])]
    if len(run.labels) > 1:
        groups += [
            (label, run.counts[row], PALETTE[(row + 1) % len(PALETTE)])
            for row, label in enumerate(run.labels)
        ]
    traces = [_background([0, 1], [0, 1], "perfect", dash="dash")]
    for position, (name, counts, color) in enumerate(groups):
        size, predicted, observed = reliability(counts, probabilities)
        filled = size > 0
        if not filled.any():
            continue
        trace = _line(
            predicted[filled].round(4).tolist(), observed[filled].round(4).tolist(), name, color
        )
        share = np.sqrt(size[filled] / size.max())
        trace["marker"] = {"color": color, "size": (5 + 17 * share).round(1).tolist()}
        trace["customdata"] = size[filled].round().tolist()
        trace["hovertemplate"] = "predicted %{x:.2f}, observed %{y:.2f}, %{customdata:,} studies"
        trace["visible"] = True if position == 0 else "legendonly"
        traces.append(trace)
    figure = _figure(
        "reliability",
        "Reliability",
        traces,
        x="predicted probability",
        y="observed share of positives",
        height=460,
    )
    figure["note"] = (
        f"Studies in {CALIBRATION_BINS} bins of predicted probability; the larger the point, "
        "the more studies. Click a label to show it."
    )
    return _square(figure, legend={"x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top"})


def budget_figures(budgets: Sequence[Budget]) -> list[Figure]:
    """Return each hospital's ceiling in parts, and how epsilon was spent over the rounds."""
    return [_budget_bars(budgets), _spending(budgets)] if budgets else []


def _budget_bars(budgets: Sequence[Budget]) -> Figure:
    names = [html.escape(one.site, quote=False) for one in budgets]
    parts = (
        ("released", PALETTE[0], [one.released for one in budgets]),
        ("reserved, not released", "#9cc3de", [one.reserved - one.released for one in budgets]),
        ("left of the ceiling", GRID, [one.left for one in budgets]),
    )
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": names,
            "y": values,
            "marker": {"color": color},
            "hovertemplate": "%{y:.2f}",
        }
        for name, color, values in parts
    ]
    figure = _figure(
        "budget", "Epsilon of each hospital", traces, x="", y="epsilon", height=320, from_zero=True
    )
    figure["layout"] |= {"barmode": "stack", "bargap": 0.45}
    figure["layout"]["xaxis"]["type"] = "category"
    return figure


def _spending(budgets: Sequence[Budget]) -> Figure:
    """One rising line for each hospital, and the ceilings."""
    traces = []
    for position, one in enumerate(budgets):
        color = PALETTE[position % len(PALETTE)]
        traces.append(_line(list(one.spent), list(one.spent.values()), one.site, color))
    first, last = min(budgets[0].spent), max(budgets[0].spent)
    for ceiling in sorted({one.ceiling for one in budgets if one.ceiling is not None}):
        trace = _background([first, last], [ceiling, ceiling], "ceiling", dash="dash")
        traces.append(trace | {"hovertemplate": f"ceiling {ceiling:g}"})
    figure = _figure(
        "spending",
        "Epsilon released, by round",
        traces,
        x="round",
        y="epsilon, composed so far",
        height=320,
        from_zero=True,
    )
    figure["note"] = "Round 0: selection. Dashed: the hospitals' ceilings."
    return figure


def _line(
    x: Sequence[float],
    y: Sequence[float | None],
    name: str,
    color: str = PALETTE[0],
    dash: str = "solid",
) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": list(y),
        "name": html.escape(name, quote=False),
        "line": {"color": color, "width": 2.2, "dash": dash},
        "marker": {"color": color, "size": 5},
        "hovertemplate": "%{y:.4~g}",
    }


def _background(
    x: Sequence[float], y: Sequence[float | None], name: str, dash: str = "solid"
) -> Trace:
    """Return a thin grey line that the legend leaves out."""
    trace = _line(x, y, name, color="#b9c4cf", dash=dash)
    trace["line"]["width"] = 1.2
    return trace | {"mode": "lines", "showlegend": False}


def _figure(
    identifier: str,
    title: str,
    data: list[Trace],
    *,
    x: str,
    y: str,
    height: int = 260,
    from_zero: bool = False,
) -> Figure:
    def axis(text: str) -> dict[str, Any]:
        return {
            "title": {"text": text, "font": {"size": 12, "color": MUTED}},
            "gridcolor": GRID,
            "linecolor": "#c9d1d9",
            "zeroline": False,
            "automargin": True,
        }

    in_legend = sum(trace.get("showlegend", True) for trace in data)
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis(x) | ({"tickformat": "d"} if x == "round" else {}),
        "yaxis": axis(y) | ({"rangemode": "tozero"} if from_zero else {}),
        "showlegend": in_legend > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }
    return {"id": identifier, "title": title, "note": "", "data": data, "layout": layout}


def _square(figure: Figure, legend: dict[str, Any]) -> Figure:
    """Both axes from 0 to 1; the legend inside while it is short, else at the right."""
    layout = figure["layout"]
    for name in ("xaxis", "yaxis"):
        layout[name] |= {"range": [-0.02, 1.02], "dtick": 0.2}
    if len(figure["data"]) > 8:
        legend = {"x": 1.02, "y": 1}
    layout["legend"] = legend | {"font": {"size": 12}, "bgcolor": "rgba(255,255,255,0.85)"}
    layout["showlegend"] = True
    return figure


def _most_points(figure: Figure) -> int:
    return max(sum(value is not None for value in trace["y"]) for trace in figure["data"])
