"""Short clinical notes for the synthetic cohort: varied wording, no negations, no identifiers."""

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.synthetic_signal import CONCEPTS

_PHRASES: dict[str, tuple[str, ...]] = {
    "productive_cough": (
        "coughing up green sputum",
        "productive cough with yellow sputum",
        "purulent sputum for three days",
    ),
    "orthopnea": (
        "sleeps on three pillows",
        "breathless when lying flat",
        "orthopnea with swollen ankles",
    ),
    "pleuritic_pain": (
        "sharp pain on deep breathing",
        "pleuritic chest pain",
        "dull percussion at the base of the chest",
    ),
    "exhaustion": (
        "drowsy and confused",
        "exhausted with laboured breathing",
        "using accessory muscles to breathe",
    ),
    "poor_perfusion": (
        "cold mottled skin",
        "rigors with clammy hands",
        "low urine output since morning",
    ),
    "immunosuppression": (
        "recent chemotherapy",
        "takes long term steroids",
        "kidney transplant some years ago",
    ),
    "chronic_disease": (
        "previous heart attack",
        "known coronary artery disease",
        "history of atrial fibrillation",
    ),
}
_OPENINGS = (
    "Seen in the emergency department",
    "Referred by the family doctor",
    "Admitted from home",
    "Reviewed on the ward",
    "Came with a relative",
)
_ASIDES = (
    "lives with family",
    "walks with a stick",
    "allergic to penicillin",
    "takes vitamin tablets",
    "history of migraine",
    "appetite is fair",
    "weight is stable",
    "wears reading glasses",
)


def write_note(concepts: NDArray[np.bool_], rng: np.random.Generator) -> str:
    """Write one note that says each present concept (bool [C]) once, among asides.

    The order, the wording and the asides are drawn; at most about 50 words.
    """
    said = [
        _PHRASES[name][rng.integers(len(_PHRASES[name]))]
        for name, present in zip(CONCEPTS, concepts, strict=True)
        if present
    ]
    said += [_ASIDES[i] for i in rng.choice(len(_ASIDES), rng.integers(1, 3), replace=False)]
    ordered = [said[i] for i in rng.permutation(len(said))]
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    sentences = [opening, *(_joined(ordered[i : i + 2]) for i in range(0, len(ordered), 2))]
    return ". ".join(sentences) + "."


def _joined(phrases: list[str]) -> str:
    sentence = ", ".join(phrases)
    return sentence[0].upper() + sentence[1:]
