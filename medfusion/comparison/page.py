"""Writes ``compare.json`` as one HTML file that works offline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion.comparison.arms import shown
from medfusion.evaluation.intervals import Interval
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.report.page import render_page
from medfusion.evaluation.report.table import Heat, Table, area_scale, heat, table
from medfusion.evaluation.report.wording import DASH, counted, number, score

_OWN = "own (personalised)"


def build_comparison_page(
    folder: Path, result: Mapping[str, Any], measures: Measures, *, name: str
) -> Path:
    """Write ``compare.html`` into a comparison's folder and return its path.

    Parameters
    ----------
    result
        The content of ``compare.json``.
    name
        What the run that was compared is called.
    """
    crosses = [
        (index, cross_site_table(index, result["arms"], measures))
        for index, arm in enumerate(result["arms"])
        if len(arm["cross_site"]) > 1
    ]
    folds = result["folds"]
    content = {
        "name": name,
        "headline": measures.headline,
        "tested": f"each tested once in {folds} folds" if folds else "in the sites' test parts",
        "patients": counted(result["n_patients"], "patient"),
        "seeds": counted(result["seeds"], "seed"),
        "resamples": number(result["resamples"]),
        "arms": arms_table(result["arms"], measures),
        "differences": differences_table(result, measures),
        "crosses": crosses,
    }
    return render_page("compare.html.j2", content, folder / "compare.html")


def arms_table(arms: Sequence[Mapping[str, Any]], measures: Measures) -> Table:
    """Return the headline figure of each arm, its settings, and its worst site."""
    headline, keys = measures.headline, list(arms[0]["settings"])
    figures = [_interval(arm[headline.key]) for arm in arms]
    scale = area_scale(figures) if headline.key == "auroc_macro" else None
    head = ("Arm", "Regime", *keys, headline.name, "95% interval")
    head += (*((f"{scale}",) if scale else ()), "Worst site")
    rows = []
    for index, (arm, figure) in enumerate(zip(arms, figures, strict=True)):
        worst = arm["worst_site"]
        rows.append(
            (
                str(index),
                arm["regime"],
                *(shown(arm["settings"][key]) for key in keys),
                *_texts(figure, measures),
                *((scale.bar(figure),) if scale else ()),
                f"{_figure(worst[headline.key], measures)} {worst['site']}" if worst else DASH,
            )
        )
    return table("Arms", head, rows, words=2 + len(keys))


def cross_site_table(index: int, arms: Sequence[Mapping[str, Any]], measures: Measures) -> Table:
    """Return where each model of an arm was trained (rows) and tested (columns).

    Below them stand the arms of the same settings that serve all sites. A row of
    personalised models holds each site's own, at home.
    """
    rows = dict(arms[index]["cross_site"])
    for other in arms:
        if other["settings"] == arms[index]["settings"] and len(other["cross_site"]) == 1:
            label = _OWN if other["regime"] == "personalised" else f"all ({other['regime']})"
            (rows[label],) = other["cross_site"].values()
    values = [one["mean"] for row in rows.values() for one in row.values()]
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if measures.headline.lower_is_better:
        low, high = high, low

    def cell(trained: str, tested: str, figure: Mapping[str, Any]) -> Heat:
        found = _interval(figure)
        mean, ends = _texts(found, measures)
        return heat(mean, ends, found.mean, low, high, marked=trained in (tested, _OWN))

    sites, tested = next(iter(rows.values())), arms[index]["per_site"]
    return table(
        f"{measures.headline.name} of each model at each site",
        ("Trained at", *(f"{site} ({tested[site]['n_patients']:,})" for site in sites)),
        [
            (name, *(cell(name, s, figure) for s, figure in row.items()))
            for name, row in rows.items()
        ],
        words=1,
    )


def differences_table(result: Mapping[str, Any], measures: Measures) -> Table | None:
    """Return the paired differences of the headline figure; None of a single arm."""
    if not result["differences"]:
        return None
    names = [
        ", ".join([arm["regime"], *(f"{k}={shown(v)}" for k, v in arm["settings"].items())])
        for arm in result["arms"]
    ]
    rows = []
    for pair in result["differences"]:
        mean, ends = _texts(_interval(pair[measures.headline.key]), measures, sign="+")
        rows.append((names[pair["a"]], names[pair["b"]], mean, ends))
    head = ("Arm", "minus arm", measures.headline.name, "95% interval")
    return table("Differences", head, rows, words=2)


def _interval(figure: Mapping[str, Any]) -> Interval:
    ends = figure["ci95"]
    return Interval(figure["mean"], (ends[0], ends[1]) if ends else None)


def _texts(figure: Interval, measures: Measures, sign: str = "") -> tuple[str, str]:
    ends = DASH
    if figure.ci95:
        ends = " to ".join(_figure(end, measures, sign) for end in figure.ci95)
    return _figure(figure.mean, measures, sign), ends


def _figure(value: float | None, measures: Measures, sign: str = "") -> str:
    """Write a figure: errors in their unit, all others as scores."""
    text = number(value) if measures.headline.lower_is_better else score(value)
    return f"{sign}{text}" if value is not None and value > 0 else text
