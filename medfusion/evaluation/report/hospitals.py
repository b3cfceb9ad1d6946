"""The report's tables of each hospital: how good the model is there, and how it took part."""

from collections.abc import Sequence

import numpy as np

from medfusion.evaluation.intervals import Interval, auroc_interval
from medfusion.evaluation.metrics import FloatArray
from medfusion.evaluation.regression_measures import RegressionMeasures
from medfusion.evaluation.report.quality import headline_of
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.table import Cell, Scale, Table, area_scale, table
from medfusion.evaluation.report.wording import (
    DASH,
    counted,
    duration,
    epsilon,
    interval,
    listed,
    number,
    score,
)

_ROUNDS_LISTED = 6  # spans of rounds in a sentence


def site_table(run: Run) -> Table:
    """Return patients, headline and privacy cost of each site, and how it took part."""
    headline = run.headline
    name_of_figure = headline.name[:1].upper() + headline.name[1:]
    figures = {
        name: headline_of(run, release, noise) for name, (release, noise) in run.releases.items()
    }
    scale = _scale(run, list(figures.values()))
    head: tuple[str, ...] = ("Hospital", "Training patients", "Test patients", name_of_figure)
    head += ("95% interval", f"{scale}", "Epsilon") if scale else ("Epsilon",)
    head += ("Rounds answered", "Time per round") if run.rounds else ()
    rows = []
    for name, site in sorted(run.summary["sites"].items()):
        value = site.get(headline.key)
        form = number if isinstance(run.measures, RegressionMeasures) else score
        row: tuple[Cell, ...] = (
            name,
            number(site["patients"]),
            _tested(run, name),
            form(value),
        )
        if scale:
            figure = figures.get(name)
            ends = figure.ci95 if figure else None
            shown = DASH if ends is None else " to ".join(form(end) for end in ends)
            row += (shown, scale.bar(figure) if figure else "")
        row += (epsilon(site["epsilon"]),)
        if run.rounds:
            asked = [line["sites"][name] for line in run.rounds if name in line["sites"]]
            answered = [part["seconds"] for part in asked if part["status"] == "ok"]
            mean = sum(answered) / len(answered) if answered else None
            row += (f"{len(answered)} of {len(run.rounds)}", duration(mean))
        rows.append(row)
    return table("Hospitals", head, rows, words=1)


def _scale(run: Run, figures: Sequence[Interval]) -> Scale | None:
    """Return a scale for the headline's intervals; None where none has one."""
    ends = [figure.ci95[1] for figure in figures if figure.ci95]
    if not ends:
        return None
    return Scale(0.0, max(ends)) if run.headline.lower_is_better else area_scale(figures)


def _tested(run: Run, name: str) -> str:
    """Return how many test patients a site's figures rest on: of the label known of most."""
    if name not in run.releases:
        return DASH
    release, noise = run.releases[name]
    if isinstance(run.measures, RegressionMeasures):
        count = float(release[0, 0])
    else:
        counts = run.measures.score_counts(release, noise=0.0)
        assert counts is not None
        count = float(counts.sum(axis=(-1, -2)).max())
    return f"{'about ' if noise else ''}{number(round(max(count, 0.0)))}"


def label_by_site_table(run: Run) -> Table | None:
    """Return each label's AUROC at each site; None where that is the table above again."""
    if run.counts is None or len(run.labels) < 2 or len(run.releases) < 2:
        return None
    rows = []
    for row, label in enumerate(run.labels):
        cells = [_area_of(run, release, noise, row) for release, noise in run.releases.values()]
        rows.append((label, *cells))
    if all(cell == DASH for _, *cells in rows for cell in cells):
        return None
    return table("AUROC by label and hospital", ("Label", *run.releases), rows, words=1)


def _area_of(run: Run, release: FloatArray, noise: float, row: int) -> str:
    counts = run.measures.score_counts(release, noise=noise)
    assert counts is not None
    figure = auroc_interval(counts[row], noise=noise)
    if figure.mean is None:
        return DASH
    return f"{score(figure.mean)} ({interval(figure.ci95)})"


def course_in_words(run: Run) -> list[str]:
    """Say which hospitals failed, waited or were absent, and when."""
    names = sorted({*run.summary["sites"], *(n for line in run.rounds for n in line["sites"])})
    found = [sentence for name in names for sentence in _of_site(run, name)]
    if run.rounds and not found:
        found = ["Every hospital answered in every round."]
    untested = [name for name in run.summary["sites"] if name not in run.releases]
    if run.releases and untested:
        found.append(f"No test figures came from {listed(sorted(untested))}.")
    return found


def _of_site(run: Run, name: str) -> list[str]:
    status = {line["round"]: line["sites"].get(name, {}).get("status") for line in run.rounds}
    if status and "ok" not in status.values():
        return [f"{name} was left out: it took part in none of the {len(status)} rounds."]
    words = {
        "failed": "{} failed to answer in {} ({}).",
        "waiting": "{} had not approved the run yet in {} ({}).",
        None: "{} was absent or not asked in {} ({}).",
    }
    return [
        text.format(name, counted(len(rounds), "round"), spans(rounds))
        for kind, text in words.items()
        if (rounds := [number for number, found in status.items() if found == kind])
    ]


def spans(numbers: Sequence[int]) -> str:
    """Write rising numbers as in ``1 to 3, 7``; the last of many are left out."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    parts = np.split(np.array(numbers), breaks)
    texts = [str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in parts]
    more = ["and others"] if len(texts) > _ROUNDS_LISTED else []
    return ", ".join([*texts[:_ROUNDS_LISTED], *more])
