"""Short clinical notes for the synthetic cohort: varied wording, no negations, no identifiers."""

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.synthetic_signal import CONCEPTS

_PHRASES: dict[str, tuple[str, ...]] = {
    "productive_cough": (
        "coughing up phlegm",
        "productive cough with sputum",
        "purulent sputum for three days",
    ),
    "orthopnea": (
        "breathless when lying flat",
        "orthopnea with ankle oedema",
        "sleeps upright at night",
    ),
    "pleuritic_pain": (
        "pleuritic chest pain",
        "sharp pain on deep inspiration",
        "chest tightness on one side",
    ),
    "exhaustion": (
        "drowsy and confused",
        "fatigue and laboured breathing",
        "using accessory muscles",
    ),
    "poor_perfusion": (
        "mottled skin with cyanosis",
        "rigors and chills",
        "poor urine output since yesterday",
    ),
    "immunosuppression": (
        "recent chemotherapy",
        "takes long term steroids",
        "kidney transplant some years ago",
    ),
    "chronic_disease": (
        "known coronary artery disease",
        "history of atrial fibrillation",
        "previous infarction",
    ),
}
_OPENINGS = (
    "Seen in the emergency department",
    "Referred by a physician",
    "Admitted from home",
    "Seen on the ward",
    "Presented today",
)
_ASIDES = (
    "lives with family",
    "has two children",
    "allergic to amoxicillin",
    "takes a statin",
    "takes paracetamol daily",
    "appetite is good",
    "weight is stable",
    "vaccinated last month",
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
