"""The report's words and tables of calibration: probabilities, decisions and prediction sets."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medfusion.evaluation.calibration import Calibration, LabelCalibration
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.table import Table, table
from medfusion.evaluation.report.wording import number, score
from medfusion.evaluation.score_histograms import LIMIT

_METHODS = {
    "temperature": "by one temperature for all labels (Guo et al. 2017)",
    "platt": "by a slope and an intercept for each label (Platt 1999)",
    "isotonic": "by the best rising curve for each label (Zadrozny and Elkan 2002)",
}


def calibration_in_words(run: Run) -> list[str]:
    """Say how probabilities, decisions and sets came about and how they fare; empty without."""
    found = run.calibration
    if found is None:
        return []
    test = found.test
    return [
        _probabilities_in_words(run, found, test),
        _decisions_in_words(found),
        f"Prediction sets are meant to hold the truth for {_percent(found.coverage)} of "
        f"patients; on test patients they did for {_percent(test.get('coverage'))}, with "
        f"{number(test.get('set_size'))} answers in a set on average. A larger set says that the "
        "model is less sure.",
    ]


def _probabilities_in_words(run: Run, found: Calibration, test: Mapping[str, Any]) -> str:
    if found.method == "none":
        return "Probabilities are the model's own: nothing was calibrated."
    noised = ", which carry privacy noise," if run.noise else ""
    kept = [name for name, label in found.labels.items() if label.calibrator is None]
    few = f"too few calibration patients of a class{' for the noise' if noised else ''}"
    if kept and found.exclusive:
        return (
            f"Probabilities are the model's own: there are {few}, and classes are calibrated "
            "together or not at all."
        )
    if len(kept) == len(found.labels):
        return f"Probabilities are the model's own: each label has {few}."
    own = f" The probability of {', '.join(kept)} is the model's own: it has {few}." if kept else ""
    return (
        f"After training, probabilities were calibrated {_METHODS[found.method]}, from the "
        f"score histograms{noised} of calibration patients of all hospitals, who took part in "
        "neither training nor test. On test patients the calibration error went from "
        f"{score(test.get('ece_before'))} to {score(test.get('ece_after'))}, the Brier score from "
        f"{score(test.get('brier_before'))} to {score(test.get('brier_after'))}."
        f"{own}{against_the_rest(found)}"
    )


def against_the_rest(found: Calibration | None) -> str:
    """Say what stands for the calibrated probabilities of classes; empty without such."""
    if found is None or not found.exclusive:
        return ""
    if all(label.calibrator is None for label in found.labels.values()):
        return ""
    return (
        " Each class is taken against all others here; the probability that is told is scaled so "
        "that the classes add up to 1, which a histogram of each class does not show."
    )


def _decisions_in_words(found: Calibration) -> str:
    if found.exclusive:
        return "The class with the highest score of the model is told."
    if found.sensitivity is None:
        return "A label is decided from a probability of .5 on."
    return (
        "A label is decided from the highest probability on that still finds "
        f"{_percent(found.sensitivity)} of the calibration patients who have it; from .5 on, "
        "where those are too few."
    )


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.0f}%"


def calibration_table(run: Run) -> Table | None:
    """Return what calibration changed for each label on test patients, and its decisions."""
    if run.calibration is None:
        return None
    found, keys = run.calibration, {"ece_before": "ECE before", "ece_after": "ECE after"}
    if not found.exclusive:
        keys |= {"sensitivity": "Sensitivity", "specificity": "Specificity"}
    keys |= {"coverage": "Sets that hold the truth", "set_size": "Answers in a set"}
    tested = found.test.get("labels", {})
    rows = [
        (
            label,
            number(round(part.positives)),
            number(round(part.negatives)),
            *(() if found.exclusive else (_decided_from(part, found.bins),)),
            *(score(tested.get(label, {}).get(key)) for key in keys),
        )
        for label, part in found.labels.items()
    ]
    head = ("Label", "Calibration: positive", "negative")
    head += (*(() if found.exclusive else ("Decided from",)), *keys.values())
    return table("Calibration and decisions by label", head, rows, words=1)


def _decided_from(label: LabelCalibration, bins: int) -> str:
    """Return the probability from which on the label is decided."""
    if label.operating_bin is None:
        return score(0.5)
    edge = LIMIT * (2 * label.operating_bin / bins - 1)
    probability = float(label.probabilities(np.array([edge]))[0])
    return score(probability)


def coverage_table(run: Run) -> Table | None:
    """Return how often the sets hold the truth at each hospital; None where none is known."""
    sites = run.calibration.test.get("sites") if run.calibration else None
    if run.calibration is None or not sites:
        return None
    labels = list(run.calibration.labels)
    rows = [
        (
            name,
            score(site["coverage"]),
            score(site["set_size"]),
            *(score(site["labels"].get(label)) for label in labels),
        )
        for name, site in sorted(sites.items())
    ]
    head = ("Hospital", "Sets that hold the truth", "Answers in a set", *labels)
    return table("Prediction sets at each hospital", head, rows, words=1)
