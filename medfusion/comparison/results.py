"""From the arms' scores to ``compare.json``.

Legend: A arms, S seeds, N test studies, W outputs of a model for a study, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medfusion.comparison.arms import Arm
from medfusion.comparison.trials import FoldData
from medfusion.data.labels import truth_array
from medfusion.data.split import TEST
from medfusion.errors import DataError
from medfusion.evaluation.intervals import Interval, Resampled
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.measures import Headline, Measures

Rows = Mapping[str, NDArray[np.float32]]
"""Scores [S, N, W] of several models on the same test studies, by where each was trained."""

RESAMPLES = 1000
_ALL_PAIRS_UP_TO = 6  # arms; beyond, only pairs that differ in one thing are worth a line


@dataclass(frozen=True, eq=False, repr=False)
class Truth:
    """What is known of the test studies, in the order in which every arm scores them.

    Attributes
    ----------
    measures
        What the task is measured by.
    labels, known
        float32 [N, L]; ``labels`` is 0 where ``known`` is 0.
    patients, sites
        str [N]; patients of different sites differ.
    folds
        int [N], the fold that tests the study, from 0; all 0 without folds.
    """

    measures: Measures
    labels: NDArray[np.float32]
    known: NDArray[np.float32]
    patients: NDArray[np.str_]
    sites: NDArray[np.str_]
    folds: NDArray[np.intp]

    @property
    def names(self) -> tuple[str, ...]:
        """The L labels."""
        return self.measures.names

    @property
    def folds_and_sites(self) -> NDArray[np.intp]:
        """A number [N] for each fold and site."""
        names, site = np.unique(self.sites, return_inverse=True)
        combined: NDArray[np.intp] = self.folds * len(names) + site
        return combined

    def at(self, site: str) -> Self:
        """Return the same studies, of which only those of one site are known."""
        return replace(self, known=self.known * (self.sites == site)[:, None])

    @classmethod
    def of(cls, folds: Sequence[FoldData]) -> Self:
        """Gather the test studies of all folds, within a fold site by site.

        Raises
        ------
        DataError
            If there are none.
        """
        parts = [
            (index, site.name, site.part(TEST))
            for index, fold in enumerate(folds)
            for site in fold.sites
        ]
        if not any(len(studies) for *_, studies in parts):
            raise DataError(
                "expected test patients, found none: use --folds, or [split] of the task"
            )
        labels = np.concatenate([studies.labels for *_, studies in parts])
        patients = [f"{name}/{patient}" for _, name, s in parts for patient in s.patient_ids]
        sizes = [len(studies) for *_, studies in parts]
        truth = np.concatenate([truth_array(s.labels, s.boxes) for *_, s in parts])
        return cls(
            measures=measures_of(folds[0].sites[0].task),
            labels=np.nan_to_num(truth, nan=0.0),
            known=(~np.isnan(labels)).astype(np.float32),
            patients=np.array(patients, dtype=np.str_),
            sites=np.repeat(np.array([name for _, name, _ in parts], dtype=np.str_), sizes),
            folds=np.repeat([index for index, *_ in parts], sizes),
        )


def compare_json(
    arms: Sequence[Arm],
    scores: NDArray[np.float32],
    truth: Truth,
    *,
    seeds: int,
    folds: int | None,
    crossed: Mapping[int, Rows] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the content of ``compare.json``.

    ``scores`` are outputs [A, S, N, W]. Every figure that ranks studies ranks those of one fold
    against each other, ``auroc_within_sites`` those of one fold and site. It is null where no
    fold has both classes; a macro figure is the mean over the labels that have one.
    ``differences`` are the figures of arm ``a`` minus those of arm ``b``. ``cross_site`` of an arm
    is what `cross_site_json` returns: of ``crossed`` (by the arm's number) where several models
    were tested at every site, else of the arm's own scores under its regime's name.
    """
    figures = figures_of(scores, truth, resamples)
    rows = [
        (crossed or {}).get(index, {arm.regime: scores[index]}) for index, arm in enumerate(arms)
    ]
    return {
        "schema": 1,
        "arms": [
            {
                **_arm_json(arm, figures, index, scores[index], truth),
                "cross_site": cross_site_json(rows[index], truth, resamples),
            }
            for index, arm in enumerate(arms)
        ],
        "differences": [
            {"a": a, "b": b}
            | {name: figure.difference(a, b).to_json() for name, figure in figures.items()}
            for a, b in compared_pairs(arms)
        ],
        "n_patients": len(np.unique(truth.patients)),
        "seeds": seeds,
        "folds": folds,
        "resamples": resamples,
    }


def cross_site_json(rows: Rows, truth: Truth, resamples: int) -> dict[str, dict[str, Any]]:
    """Return the headline figure (``mean``, ``ci95``) of each row's models at each site."""
    stacked = np.stack(list(rows.values()))
    found: dict[str, dict[str, Any]] = {name: {} for name in rows}
    for site in np.unique(truth.sites):
        figure = figures_of(stacked, truth.at(site), resamples)[truth.measures.headline.key]
        for number, name in enumerate(rows):
            found[name][str(site)] = figure.macro(number).to_json()
    return found


def compared_pairs(arms: Sequence[Arm]) -> list[tuple[int, int]]:
    """Return pairs (later arm, earlier arm), ordered by the earlier one.

    All of them for a few arms; else those with the first arm, and those that share the regime
    or the settings.
    """
    return [
        (later, earlier)
        for earlier, later in combinations(range(len(arms)), 2)
        if len(arms) <= _ALL_PAIRS_UP_TO
        or earlier == 0
        or arms[earlier].regime == arms[later].regime
        or arms[earlier].settings == arms[later].settings
    ]


def figures_of(
    scores: NDArray[np.float32], truth: Truth, resamples: int = RESAMPLES
) -> dict[str, Resampled]:
    """Return the figures of scores [A, S, N, W], all over the same resamples, by their keys."""
    return truth.measures.figures(
        scores,
        truth.labels,
        truth.known,
        truth.patients,
        groups={"fold": truth.folds, "site": truth.folds_and_sites},
        resamples=resamples,
    )


def headline_of(scores: NDArray[np.float32], truth: Truth, site: str | None = None) -> float | None:
    """Return the headline figure of scores [S, N, W], at one site or all; ranks within folds.

    Raises
    ------
    FederationError
        If a score is NaN: a model diverged.
    """
    if site is not None:
        truth = truth.at(site)
    figure = figures_of(scores[None], truth, resamples=0)[truth.measures.headline.key]
    return figure.itself(0)


def worst_site(
    figures: Mapping[str, float | None], headline: Headline = Measures.headline
) -> dict[str, Any] | None:
    """Return ``{"site", KEY}`` of the worst (of equal ones, the first); None without any.

    KEY is the headline's, ``auroc_macro`` unless another is given.
    """
    known = {site: figure for site, figure in figures.items() if figure is not None}
    if not known:
        return None
    sign = -1 if headline.lower_is_better else 1
    worst = min(known, key=lambda site: sign * known[site])
    return {"site": worst, headline.key: known[worst]}


def _arm_json(
    arm: Arm,
    figures: Mapping[str, Resampled],
    index: int,
    scores: NDArray[np.float32],
    truth: Truth,
) -> dict[str, Any]:
    measures = truth.measures
    by_site = {str(site): headline_of(scores, truth, site) for site in np.unique(truth.sites)}
    return {
        "regime": arm.regime,
        "settings": dict(arm.settings),
        "auroc_macro": Interval(None, None).to_json(),
        "auroc": {},
        **{name: figure.macro(index).to_json() for name, figure in figures.items()},
        **{
            key: _label_figures(figures[macro], index, truth.names)
            for key, macro in measures.by_label.items()
        },
        **measures.counts(scores, truth.labels, truth.known),
        "worst_site": worst_site(by_site, measures.headline),
        "per_site": {
            site: {
                "auroc_macro": None,
                measures.headline.key: figure,
                "n_patients": len(np.unique(truth.patients[truth.sites == site])),
            }
            for site, figure in by_site.items()
        },
    }


def _label_figures(figure: Resampled, arm: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: figure.label(arm, label).to_json() for label, name in enumerate(names)}
