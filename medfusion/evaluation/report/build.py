"""Renders a run folder as one HTML file that works offline."""

import json
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from medfusion.evaluation.report import budget, figures, tables
from medfusion.evaluation.report.initial_weights import initial_weights_in_words
from medfusion.evaluation.report.page import render_page
from medfusion.evaluation.report.run_folder import Run, read_run


def build_report(run_dir: Path, *, summary: dict[str, Any] | None = None) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Reads ``summary.json`` (unless ``summary`` is its content, about to be written) and, where
    they exist, ``rounds.jsonl``, ``histograms.json``,
    ``model/model.json`` and ``config.toml``.

    Raises
    ------
    DataError
        If the folder is not a finished run's, or a file is damaged or of another schema.
    """
    run = read_run(run_dir, summary=summary)
    return render_page("report.html.j2", _content(run), run_dir / "report.html")


def _content(run: Run) -> dict[str, Any]:
    """Return what the template shows."""
    curves = figures.curves_by_round(run) if run.rounds else []
    labels, quality = None, []
    target, told = tables.target_table(run), tables.confusion_table(run)
    if run.counts is not None:
        labels, legends = tables.label_table(run)
        quality = [figures.roc_curves(run, legends), figures.reliability_diagram(run)]
    spent = budget.budgets(run)
    spending = figures.budget_figures(spent)
    return {
        "run": run,
        "key_figures": tables.key_figures(run),
        "sentences": tables.in_words(run),
        "curves": curves,
        "quality": quality,
        "labels": labels,
        "target": target,
        "told": told,
        "headline": run.measures.headline.name,
        "sites": tables.site_table(run),
        "thresholds": tables.threshold_table(run),
        "selection_text": tables.selection_in_words(run),
        "privacy": run.privacy,
        "privacy_text": tables.privacy_covers(run),
        "initial_weights_text": initial_weights_in_words(run.card),
        "plans": tables.privacy_table(run),
        "budgets": budget.budget_table(spent),
        "spending": spending,
        "client_dp_text": budget.client_dp_in_words(run),
        "figures_json": _script_safe([*curves, *quality, *spending]),
        "plotly_js": get_plotlyjs(),
    }


def _script_safe(data: Any) -> str:
    """Return JSON in which nothing can end the script element that holds it."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
