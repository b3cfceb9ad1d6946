"""From the arms' scores to ``compare.json``.

Legend: A arms, S seeds, N test studies, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medfusion.comparison.arms import Arm
from medfusion.comparison.trials import FoldData
from medfusion.data.split import TEST
from medfusion.errors import DataError
from medfusion.evaluation.intervals import PatientBootstrap, patient_bootstrap
from medfusion.evaluation.metrics import mean_of_known, metrics_from_logits

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
    """

    names: tuple[str, ...]
    labels: NDArray[np.float32]
    known: NDArray[np.float32]
    patients: NDArray[np.str_]
    sites: NDArray[np.str_]

    @classmethod
    def of(cls, folds: Sequence[FoldData]) -> Self:
        """Gather the test studies of all folds, within a fold site by site.

        Raises
        ------
        DataError
            If there are none.
        """
        parts = [(site.name, site.part(TEST)) for fold in folds for site in fold.sites]
        if not any(len(studies) for _, studies in parts):
            raise DataError(
                "expected test patients, found none: use --folds, or [split] of the task"
            )
        labels = np.concatenate([studies.labels for _, studies in parts])
        patients = [f"{name}/{patient}" for name, s in parts for patient in s.patient_ids]
        return cls(
            names=folds[0].sites[0].task.labels.names,
            labels=np.nan_to_num(labels, nan=0.0),
            known=(~np.isnan(labels)).astype(np.float32),
            patients=np.array(patients, dtype=np.str_),
            sites=np.array([name for name, s in parts for _ in range(len(s))], dtype=np.str_),
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

    ``scores`` are logits [A, S, N, L]. A figure is null where a class is absent. In
    ``differences``, ``auroc_macro`` is that of arm ``a`` minus that of arm ``b``; the macro
    AUROC is the mean over the labels that have one.
    """
    bootstrap = patient_bootstrap(
        scores, truth.labels, truth.known, truth.patients, resamples=resamples
    )
    return {
        "schema": 1,
        "arms": [
            _arm_json(arm, bootstrap, index, scores[index], truth) for index, arm in enumerate(arms)
        ],
        "differences": [
            {"a": a, "b": b, "auroc_macro": bootstrap.difference(a, b).to_json()}
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


def auroc_macro(scores: NDArray[np.float32], truth: Truth, site: str | None = None) -> float | None:
    """Return the macro AUROC of scores [S, N, L], averaged over seeds, at one site or all."""
    rows = slice(None) if site is None else truth.sites == site
    return mean_of_known(
        [
            metrics_from_logits(logits[rows], truth.labels[rows], truth.known[rows]).auroc_macro
            for logits in scores
        ]
    )


def _arm_json(
    arm: Arm, bootstrap: PatientBootstrap, index: int, scores: NDArray[np.float32], truth: Truth
) -> dict[str, Any]:
    return {
        "regime": arm.regime,
        "settings": dict(arm.settings),
        "auroc_macro": bootstrap.macro(index).to_json(),
        "auroc": {
            name: bootstrap.auroc(index, label).to_json() for label, name in enumerate(truth.names)
        },
        "per_site": {
            str(site): {
                "auroc_macro": auroc_macro(scores, truth, site),
                "n_patients": len(np.unique(truth.patients[truth.sites == site])),
            }
            for site in np.unique(truth.sites)
        },
    }
