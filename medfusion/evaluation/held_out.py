"""Figures of a model on held-out studies of one site, from raw scores.

Legend: N studies, L labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.decision_curve import decision_curve_json
from medfusion.evaluation.intervals import patient_bootstrap
from medfusion.evaluation.metrics import (
    check_logits,
    counts_at_scores,
    metrics_from_counts,
    sigmoid,
)
from medfusion.evaluation.operating_points import operating_points


def held_out_json(
    logits: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    patients: NDArray[Any],
    names: Sequence[str],
) -> dict[str, Any]:
    """Return counts and figures, overall and for each label.

    Parameters
    ----------
    logits, labels, known
        [N, L]; a label counts where ``known`` is not 0.
    patients
        [N], one value for each patient: the bootstrap's unit.
    names
        The L labels.

    Returns
    -------
    dict
        ``patients``, ``studies``, ``auroc_macro`` (``mean``, ``ci95``), ``auprc_macro``,
        ``brier``, ``ece`` (means over labels), and for each of ``labels``: ``auroc`` (``mean``,
        ``ci95``), ``auprc``, ``brier``, ``ece``, ``positives``, ``negatives``, ``unknown``. Also,
        overall and for each label, ``sensitivity_at_90_specificity`` and
        ``specificity_at_90_sensitivity`` (``mean``, ``ci95``); for each label ``decision_curve``
        (``thresholds``, ``model``, ``all``). None where undefined.
    """
    check_logits(logits)
    counts, scores = counts_at_scores(logits, labels, known)
    probabilities = [sigmoid(each) for each in scores]
    figures = metrics_from_counts(counts, probabilities)
    points = operating_points(logits, labels, known, patients)
    bootstrap = patient_bootstrap(logits[None], labels, known, patients)
    positives = ((labels > 0) & (known > 0)).sum(axis=0)
    answered = (known > 0).sum(axis=0)
    return {
        "patients": len(np.unique(patients)),
        "studies": len(logits),
        "auroc_macro": bootstrap.auroc.macro(0).to_json(),
        "auprc_macro": figures.auprc_macro,
        "brier": figures.brier_macro,
        "ece": figures.ece_macro,
        **{key: point.macro(0).to_json() for key, point in points.items()},
        "labels": {
            name: {
                "auroc": bootstrap.auroc.label(0, column).to_json(),
                "auprc": figures.auprc[column],
                "brier": figures.brier[column],
                "ece": figures.ece[column],
                **{key: point.label(0, column).to_json() for key, point in points.items()},
                "decision_curve": decision_curve_json(counts[column], probabilities[column]),
                "positives": int(positives[column]),
                "negatives": int(answered[column] - positives[column]),
                "unknown": int(len(logits) - answered[column]),
            }
            for column, name in enumerate(names)
        },
    }
