"""Figures of subgroups of patients: each group's, and how far they are from everybody else's.

Raw scores of one site, which stay there. Group and others are drawn together in each resample, so
the interval of a gap is of a paired difference. A gap is the mean over the labels that both sides
have, so that a label which only one side knows does not count as unfairness.

Legend: N studies, L labels, F columns, W outputs of a model for a study.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import Task
from medfusion.evaluation.intervals import Resampled
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.subgroups import attribute_of

RESAMPLES = 1000
UNKNOWN = "(unknown)"
_BETWEEN_SITES = "auroc_within_sites"  # the same as AUROC where there is one site


@dataclass(frozen=True, eq=False, repr=False)
class Grouping:
    """Studies by groups of one feature.

    Attributes
    ----------
    by
        The feature.
    names
        The groups, in order; the last is of studies where the feature is missing.
    group
        [N], the number of each study's group.
    """

    by: str
    names: tuple[str, ...]
    group: NDArray[np.intp]


def grouping_of(text: str, task: Task, features: NDArray[np.float64]) -> Grouping:
    """Group studies by an attribute (`medfusion.evaluation.subgroups`); ``features`` are [N, F].

    Raises
    ------
    UsageError
        For what is no attribute of the task.
    """
    attribute = attribute_of(text, task, where="--by")
    members = attribute.members(features)
    group = np.where(members.any(axis=0), members.argmax(axis=0), len(attribute.groups))
    return Grouping(attribute.feature, (*attribute.groups, UNKNOWN), group.astype(np.intp))


def subgroups_json(
    grouping: Grouping,
    measures: Measures,
    outputs: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    patients: NDArray[Any],
    *,
    min_patients: int,
) -> dict[str, Any]:
    """Return ``by``, ``min_patients`` and the ``groups`` that have a study.

    Each has ``group``, ``patients``, ``studies`` and ``known`` (studies by label); with at least
    ``min_patients`` also ``figures``, else None; and, if the others are as many, ``gaps`` (group
    minus others, mean over labels). Both are ``{"mean", "ci95"}`` by the figure's key.

    Parameters
    ----------
    outputs, labels, known, patients
        [N, W], [N, L], [N, L], [N], as in `Measures.held_out`.
    """

    def figures(chosen: NDArray[np.bool_]) -> dict[str, Resampled]:
        one = np.zeros(len(patients), np.intp)
        found = measures.figures(
            outputs[None, None],
            labels,
            known * chosen[:, None],
            patients,
            groups={"fold": one, "site": one},
            resamples=RESAMPLES,
        )
        return {key: figure for key, figure in found.items() if key != _BETWEEN_SITES}

    rows = []
    for number, name in enumerate(grouping.names):
        chosen = grouping.group == number
        if not chosen.any():
            continue
        size, others = (len(np.unique(patients[part])) for part in (chosen, ~chosen))
        own = figures(chosen) if size >= min_patients else None
        rest = figures(~chosen) if own and others >= min_patients else None
        counts = (known[chosen] > 0).sum(axis=0)
        rows.append(
            {
                "group": name,
                "patients": size,
                "studies": int(chosen.sum()),
                "known": dict(zip(measures.names, (int(n) for n in counts), strict=True)),
                "figures": _figures(own) if own else None,
                "gaps": _gaps(own, rest) if own and rest else None,
            }
        )
    return {"by": grouping.by, "min_patients": min_patients, "groups": rows}


def _figures(own: dict[str, Resampled]) -> dict[str, Any]:
    return {key: figure.macro(0).to_json() for key, figure in own.items()}


def _gaps(own: dict[str, Resampled], rest: dict[str, Resampled]) -> dict[str, Any]:
    """Return each figure of the group minus that of the others, label by label, then the mean."""
    return {
        key: Resampled(figure.values - rest[key].values).macro(0).to_json()
        for key, figure in own.items()
    }
