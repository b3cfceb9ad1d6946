"""Renders a run folder as one HTML file that works offline."""

from pathlib import Path
from typing import Any

from medfusion.errors import DataError
from medfusion.evaluation.report import (
    budget,
    calibration,
    figures,
    hospitals,
    lead,
    privacy,
    quality,
    reproduce,
    selection,
)
from medfusion.evaluation.report.initial_weights import initial_weights_in_words
from medfusion.evaluation.report.page import render_page
from medfusion.evaluation.report.run_folder import Run, read_run

_EXPECTED = {"auroc", "sites", "rounds", "seconds", "bytes_up", "bytes_down", "seed"}


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
    if lacking := _EXPECTED - run.summary.keys():
        raise DataError(
            f"{run_dir / 'summary.json'}: expected the keys of a finished run, found no "
            f"{', '.join(sorted(lacking))}"
        )
    return render_page("report.html.j2", _content(run), run_dir / "report.html")


def _content(run: Run) -> dict[str, Any]:
    """Return what the template shows."""
    spent = budget.budgets(run)
    return {
        "run": run,
        "key_figures": lead.key_figures(run),
        "sentences": lead.in_words(run),
        "labels": quality.label_table(run),
        "target": quality.target_table(run),
        "told": quality.confusion_table(run),
        "boxes": quality.boxes_table(run),
        "quality": figures.quality_figures(run),
        "subgroups": quality.subgroup_table(run),
        "calibration_text": calibration.calibration_in_words(run),
        "calibrated": calibration.calibration_table(run),
        "reliable": figures.calibrated_reliability(run),
        "coverage": calibration.coverage_table(run),
        "headline": run.headline.name,
        "sites": hospitals.site_table(run),
        "labels_by_site": hospitals.label_by_site_table(run),
        "course": hospitals.course_in_words(run),
        "curves": figures.curves_by_round(run),
        "thresholds": selection.threshold_table(run),
        "selection_text": selection.selection_in_words(run),
        "privacy": run.privacy,
        "privacy_text": privacy.privacy_covers(run),
        "privacy_means": privacy.privacy_means(run),
        "initial_weights_text": initial_weights_in_words(run.card),
        "plans": privacy.privacy_table(run),
        "budgets": budget.budget_table(spent),
        "spending": figures.spending(spent),
        "client_dp_text": budget.client_dp_in_words(run),
        "commands": reproduce.commands(run),
        "same_text": reproduce.same_in_words(run),
        "facts": reproduce.facts(run),
    }
