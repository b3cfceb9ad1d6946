"""Figures of subgroups of patients: each group's, and how far they are from everybody else's.

Raw scores of one site, which stay there. Group and others are drawn together in each resample, so
the interval of a gap is of a paired difference. A gap is the mean over the labels that both sides
have, so that a label which only one side knows does not count as unfairness.

Legend: N studies, L labels, F columns, W outputs of a model for a study.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import CategoricalFeature, NumericFeature, Task
from medfusion.errors import UsageError, did_you_mean
from medfusion.evaluation.intervals import Resampled
from medfusion.evaluation.measures import Measures

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
    """Group studies as ``sex`` or, of a number, as ``age:40,60`` says (a cut starts a group).

    ``features`` are [N, F], NaN where missing.

    Raises
    ------
    UsageError
        For an unknown feature, a number without cuts, or cuts that do not rise within the range.
    """
    by, _, rest = text.partition(":")
    if by not in task.features:
        known = ", ".join(task.features)
        raise UsageError(f"--by {text}: expected one of {known}{did_you_mean(by, task.features)}")
    feature, values = task.features[by], features[:, list(task.features).index(by)]
    if isinstance(feature, NumericFeature):
        cuts = _cuts(text, rest, feature)
        names, group = _bands(cuts), np.searchsorted(cuts, values, side="right")
    elif rest:
        raise UsageError(f"--by {text}: {by} has groups of its own; expected --by {by}")
    else:
        names = feature.values if isinstance(feature, CategoricalFeature) else ("0", "1")
        group = np.nan_to_num(values, nan=0.0).astype(np.intp)
    missing = np.isnan(values)
    return Grouping(by, (*names, UNKNOWN), np.where(missing, len(names), group).astype(np.intp))


def _cuts(text: str, rest: str, feature: NumericFeature) -> list[float]:
    try:
        cuts = [float(part) for part in rest.split(",")]
    except ValueError:
        cuts = []
    inside = all(feature.low < cut < feature.high for cut in cuts)
    if not cuts or cuts != sorted(set(cuts)) or not inside:
        raise UsageError(
            f"--by {text}: expected rising cuts between {feature.low:g} and {feature.high:g}, "
            f"as in --by {text.partition(':')[0]}:A,B"
        )
    return cuts


def _bands(cuts: list[float]) -> tuple[str, ...]:
    between = [f"{low:g} to below {high:g}" for low, high in pairwise(cuts)]
    return (f"below {cuts[0]:g}", *between, f"{cuts[-1]:g} and above")


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
