"""From the arms' scores to ``compare.json``.

Legend: A arms, S seeds, N test studies, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medfusion.comparison.arms import Arm
from medfusion.comparison.trials import FoldData
from medfusion.data.split import TEST
from medfusion.errors import DataError
from medfusion.evaluation.intervals import PatientBootstrap, Resampled, patient_bootstrap
from medfusion.evaluation.metrics import check_logits, mean_of_known

RESAMPLES = 1000
_ALL_PAIRS_UP_TO = 6  # arms; beyond, only pairs that differ in one thing are worth a line


@dataclass(frozen=True, eq=False, repr=False)
class Truth:
    """What is known of the test studies, in the order in which every arm scores them.

    Attributes
    ----------
    names
        The L labels.
    labels, known
        float32 [N, L]; ``labels`` is 0 where ``known`` is 0.
    patients, sites
        str [N]; patients of different sites differ.
    folds
        int [N], the fold that tests the study, from 0; all 0 without folds.
    """

    names: tuple[str, ...]
    labels: NDArray[np.float32]
    known: NDArray[np.float32]
    patients: NDArray[np.str_]
    sites: NDArray[np.str_]
    folds: NDArray[np.intp]

    @property
    def folds_and_sites(self) -> NDArray[np.intp]:
        """A number [N] for each fold and site."""
        names, site = np.unique(self.sites, return_inverse=True)
        combined: NDArray[np.intp] = self.folds * len(names) + site
        return combined

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
        return cls(
            names=folds[0].sites[0].task.labels.names,
            labels=np.nan_to_num(labels, nan=0.0),
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
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the content of ``compare.json``.

    ``scores`` are logits [A, S, N, L]. Every figure ranks studies of one fold against each
    other, ``auroc_within_sites`` those of one fold and site. A figure is null where no fold has
    both classes; a macro figure is the mean over the labels that have one. ``differences`` are
    the figures of arm ``a`` minus those of arm ``b``.
    """
    figures = figures_of(scores, truth, resamples)
    return {
        "schema": 1,
        "arms": [
            _arm_json(arm, figures, index, scores[index], truth) for index, arm in enumerate(arms)
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
    """Return the figures of scores [A, S, N, L], all over the same resamples, by their keys."""
    in_fold = _bootstrap(scores, truth, truth.folds, resamples)
    in_site = _bootstrap(scores, truth, truth.folds_and_sites, resamples)
    return {
        "auroc_macro": in_fold.auroc,
        "auroc_within_sites": in_site.auroc,
        "auprc_macro": in_fold.auprc,
    }


def _bootstrap(
    scores: NDArray[np.float32], truth: Truth, groups: NDArray[np.intp], resamples: int
) -> PatientBootstrap:
    return patient_bootstrap(
        scores, truth.labels, truth.known, truth.patients, groups=groups, resamples=resamples
    )


def auroc_macro(scores: NDArray[np.float32], truth: Truth, site: str | None = None) -> float | None:
    """Return the macro AUROC of scores [S, N, L] within folds, at one site or all.

    Raises
    ------
    FederationError
        If a score is NaN: a model diverged.
    """
    check_logits(scores)
    if site is not None:
        truth = replace(truth, known=truth.known * (truth.sites == site)[:, None])
    (areas,) = _bootstrap(scores[None], truth, truth.folds, resamples=0).auroc.values[0]
    return mean_of_known([None if np.isnan(area) else float(area) for area in areas])


def worst_site(areas: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return ``{"site", "auroc_macro"}`` of the least (of equal ones, the first); None without."""
    known = {site: area for site, area in areas.items() if area is not None}
    if not known:
        return None
    worst = min(known, key=lambda site: known[site])
    return {"site": worst, "auroc_macro": known[worst]}


def _arm_json(
    arm: Arm,
    figures: Mapping[str, Resampled],
    index: int,
    scores: NDArray[np.float32],
    truth: Truth,
) -> dict[str, Any]:
    areas = {str(site): auroc_macro(scores, truth, site) for site in np.unique(truth.sites)}
    return {
        "regime": arm.regime,
        "settings": dict(arm.settings),
        **{name: figure.macro(index).to_json() for name, figure in figures.items()},
        "auroc": _label_figures(figures["auroc_macro"], index, truth.names),
        "auprc": _label_figures(figures["auprc_macro"], index, truth.names),
        "worst_site": worst_site(areas),
        "per_site": {
            site: {
                "auroc_macro": area,
                "n_patients": len(np.unique(truth.patients[truth.sites == site])),
            }
            for site, area in areas.items()
        },
    }


def _label_figures(figure: Resampled, arm: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: figure.label(arm, label).to_json() for label, name in enumerate(names)}
