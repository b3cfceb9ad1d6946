"""How well calibrated probabilities, decisions and prediction sets are, from counts over scores.

Raw scores and score histograms share the definitions, as in `medfusion.evaluation.metrics`.
Decisions and sets depend on the bin of a score alone, so their figures are the same from both. Of
exclusive classes the probability is that of the class against the rest, not yet scaled to add up
to 1, since histograms do not tell which scores belong together.

Legend: L labels, U distinct scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medfusion.evaluation.calibration import Calibration, LabelCalibration
from medfusion.evaluation.metrics import FloatArray, brier, ece, mean_of_known, sigmoid
from medfusion.evaluation.score_histograms import bin_centres, bin_numbers

_MEANS = ("ece_before", "ece_after", "brier_before", "brier_after")


def calibrated_figures(
    calibration: Calibration, counts: Sequence[FloatArray], scores: Sequence[FloatArray]
) -> dict[str, Any]:
    """Return what calibration changes, and what sets and decisions hold.

    Parameters
    ----------
    counts, scores
        For each label [2, U], negatives and positives at each score, and [U], the logits.

    Returns
    -------
    dict
        ``ece_before``, ``ece_after``, ``brier_before``, ``brier_after``: means over labels.
        ``coverage``: share of sets that hold the truth (over labels, or of studies where classes
        are exclusive); ``set_size``: how many classes a set holds on average, where a label has
        two, present and absent. ``labels``: the same of each, with ``sensitivity`` and
        ``specificity`` of decisions, which exclusive classes lack. None where undefined.
    """
    labels = {
        name: _of_label(each, count, score, calibration)
        for (name, each), count, score in zip(
            calibration.labels.items(), counts, scores, strict=True
        )
    }
    found: dict[str, Any] = {
        key: mean_of_known([label[key] for label in labels.values()]) for key in _MEANS
    }
    found["coverage"] = mean_of_known([label["coverage"] for label in labels.values()])
    found["set_size"] = mean_of_known([label["set_size"] for label in labels.values()])
    if calibration.exclusive and found["set_size"] is not None:
        positives = [float(count[1].sum()) for count in counts]
        held = [label["coverage"] or 0.0 for label in labels.values()]
        found["coverage"] = _share(np.dot(held, positives), sum(positives))
        found["set_size"] *= len(labels)  # every study counts in each class
    return found | {"labels": labels}


def figures_of_histograms(calibration: Calibration, counts: FloatArray) -> dict[str, Any]:
    """Return `calibrated_figures` of histograms [L, 2, S], each study at its bin's centre."""
    return calibrated_figures(
        calibration, list(counts), [bin_centres(counts.shape[-1])] * len(counts)
    )


def _of_label(
    label: LabelCalibration, counts: FloatArray, scores: FloatArray, calibration: Calibration
) -> dict[str, float | None]:
    told, before = label.probabilities(scores), sigmoid(scores)
    place = bin_numbers(scores, calibration.bins)
    present, absent = place >= label.present_from, place < label.absent_below
    negatives, positives = counts
    both = counts.sum(axis=0)
    found = {
        "ece_before": ece(counts, before),
        "ece_after": ece(counts, told),
        "brier_before": brier(counts, before),
        "brier_after": brier(counts, told),
    }
    if calibration.exclusive:
        return found | {
            "coverage": _share(positives[present].sum(), positives.sum()),
            "set_size": _share(both[present].sum(), both.sum()),
        }
    decided = told >= 0.5 if label.operating_bin is None else place >= label.operating_bin
    return found | {
        "coverage": _share(positives[present].sum() + negatives[absent].sum(), both.sum()),
        "set_size": _share(both[present].sum() + both[absent].sum(), both.sum()),
        "sensitivity": _share(positives[decided].sum(), positives.sum()),
        "specificity": _share(negatives[~decided].sum(), negatives.sum()),
    }


def _share(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole > 0 else None
