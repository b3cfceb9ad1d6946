"""From the scores on a real set to figures, differences and tables.

Figures are those of `medfusion compare`: studies are ranked within a fold (``auroc``,
``auprc``), and also within fold and site (``within_sites``), which leaves out what the site alone
gives away. Differences are paired. The best baseline (or modality) is chosen on the test
patients, which favours it.

Legend: S seeds, N test studies, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from figure_cells import cells, number_text
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from medfusion.comparison.results import RESAMPLES, Truth, figures_of, headline_of, worst_site
from medfusion.evaluation.intervals import Resampled

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """Logits [S, N, L] of one arm or baseline; ``modalities`` by ``+``."""

    name: str
    kind: str  # a regime, or "baseline"
    modalities: str
    scores: Scores


def report(scored: Sequence[Scored], truth: Truth, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return figures of all arms and baselines, and the differences that matter."""
    found = figures_of(np.stack([one.scores for one in scored]), truth, resamples)
    figures = {
        "auroc": found["auroc_macro"],
        "auprc": found["auprc_macro"],
        "within_sites": found["auroc_within_sites"],
    }
    return {
        "n_patients": len(np.unique(truth.patients)),
        "n_studies": len(truth.patients),
        "resamples": resamples,
        "arms": [_arm(one, figures, i, truth) for i, one in enumerate(scored)],
        "differences": [
            {"figure": name, "a": scored[a].name, "b": scored[b].name}
            | figure.difference(a, b).to_json()
            for name, figure in figures.items()
            for a, b in _pairs(scored, figure)
        ],
    }


def _arm(one: Scored, figures: Mapping[str, Resampled], index: int, truth: Truth) -> dict[str, Any]:
    result: dict[str, Any] = {"name": one.name, "kind": one.kind, "modalities": one.modalities}
    for name, figure in figures.items():
        result[f"{name}_macro"] = figure.macro(index).to_json()
        result[name] = {
            label: figure.label(index, i).to_json() for i, label in enumerate(truth.names)
        }
    areas = {str(site): headline_of(one.scores, truth, site) for site in np.unique(truth.sites)}
    return result | {"per_site": areas, "worst_site": worst_site(areas)}


def _pairs(scored: Sequence[Scored], figure: Resampled) -> list[tuple[int, int]]:
    """Pair each regime with the best baseline; federated with the others and the best modality."""
    means = [figure.macro(i).mean or 0.0 for i in range(len(scored))]
    everything = max((one.modalities for one in scored), key=lambda text: text.count("+"))
    full = [i for i, s in enumerate(scored) if s.kind != "baseline" and s.modalities == everything]
    rivals = [i for i, s in enumerate(scored) if s.kind == "baseline"]
    single = [i for i, s in enumerate(scored) if s.kind == "federated" and i not in full]
    pairs = [(i, max(rivals, key=lambda j: means[j])) for i in full]
    for i in full:
        if scored[i].kind == "federated":
            pairs += [(i, j) for j in full if j != i]
            pairs += [(i, max(single, key=lambda j: means[j]))] if single else []
    return pairs


def show(result: dict[str, Any]) -> None:
    """Print all figures, and the differences."""
    console = Console(markup=False, width=150)
    interval = "95% CI"
    names = ("AUROC", interval, "within sites", interval, "worst site", "", "AUPRC", interval)
    table = Table("macro means over labels", *names)
    for arm in result["arms"]:
        worst = arm["worst_site"] or {"site": "-", "auroc_macro": None}
        table.add_row(
            arm["name"],
            *cells(arm["auroc_macro"]),
            *cells(arm["within_sites_macro"]),
            worst["site"],
            number_text(worst["auroc_macro"]),
            *cells(arm["auprc_macro"]),
        )
    console.print(table)
    table = Table("figure", "", "minus", "difference", interval)
    for gap in result["differences"]:
        table.add_row(gap["figure"], gap["a"], gap["b"], *cells(gap, "+"))
    console.print(table)
    console.print(
        f"{result['n_patients']} patients, {result['n_studies']} studies, each tested once in "
        f"{result['folds']} folds; seeds: {result['seeds']}; intervals from "
        f"{result['resamples']} resamples of patients"
    )
