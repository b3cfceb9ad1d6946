"""The truth behind the synthetic cohort: what is planted, and what can be known from it.

Shapes: N studies, L labels, F features, I image findings, C concepts in notes.

Findings are drawn first, independently of one another; labels follow from them through logits
that are sums of an image part, a tabular part and a text part. So each modality carries what
the others lack, and the true probability of every label is known in closed form.

Labels depend on one another: heart failure brings effusion, pneumonia brings ICU transfer,
and septic shock, the rare one, occurs only with pneumonia.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import BinaryFeature, CategoricalFeature, Feature, NumericFeature

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LABELS = ("pneumonia", "heart_failure", "effusion", "icu_transfer", "septic_shock")
PNEUMONIA, HEART_FAILURE, EFFUSION, ICU_TRANSFER, SEPTIC_SHOCK = range(len(LABELS))
IMAGE_FINDINGS = ("opacity", "enlarged_heart", "fluid_level", "diffuse_texture", "catheter")
CONCEPTS = (
    "productive_cough",
    "orthopnea",
    "pleuritic_pain",
    "exhaustion",
    "poor_perfusion",
    "immunosuppression",
    "chronic_disease",
)

FEATURES: dict[str, Feature] = {
    "age": NumericFeature(kind="numeric", low=0, high=120, unit="year"),
    "sex": CategoricalFeature(kind="categorical", values=("F", "M")),
    "smoker": BinaryFeature(kind="binary"),
    "admission": CategoricalFeature(kind="categorical", values=("clinic", "ambulance", "transfer")),
    "temperature": NumericFeature(kind="numeric", low=34, high=42, unit="degC"),
    "heart_rate": NumericFeature(kind="numeric", low=40, high=200, unit="1/min"),
    "systolic_pressure": NumericFeature(kind="numeric", low=40, high=200, unit="mmHg"),
    "oxygen_saturation": NumericFeature(kind="numeric", low=68, high=100, unit="%"),
    "crp": NumericFeature(kind="numeric", low=0, high=320, unit="mg/L"),
    "bnp": NumericFeature(kind="numeric", low=0, high=1600, unit="pg/mL"),
    "albumin": NumericFeature(kind="numeric", low=10, high=50, unit="g/L"),
    "potassium": NumericFeature(kind="numeric", low=2, high=8, unit="mmol/L"),
    "haematocrit": NumericFeature(kind="numeric", low=15, high=60, unit="%"),
}
NOISE_FEATURES = ("sex", "potassium", "haematocrit")
LASTING_FEATURES = ("age", "sex", "smoker")  # the same in every study of a patient

# Mean and standard deviation of the bell curve that each numeric feature is drawn from.
_BELLS = {
    "age": (60.0, 17.0),
    "temperature": (37.8, 0.9),
    "heart_rate": (92.0, 18.0),
    "systolic_pressure": (102.0, 19.0),
    "oxygen_saturation": (92.4, 3.2),
    "crp": (95.0, 48.0),
    "bnp": (370.0, 170.0),
    "albumin": (31.2, 5.5),
    "potassium": (4.3, 0.6),
    "haematocrit": (38.0, 5.0),
}
_DECIMALS = {"temperature": 2, "age": 0, "heart_rate": 0, "systolic_pressure": 0, "bnp": 0}
_SMOKERS = 0.35
_ADMISSIONS = (0.45, 0.35, 0.20)


@dataclass(frozen=True)
class CutPoint:
    """A planted step: the logit of ``label`` rises by ``weight`` on the risk side of ``value``."""

    label: str
    feature: str
    value: float
    direction: str  # "above": risk where x > value; "below": risk where x <= value
    weight: float


CUT_POINTS = (
    CutPoint("pneumonia", "temperature", 38.0, "above", 3.4),
    CutPoint("heart_failure", "bnp", 400.0, "above", 3.4),
    CutPoint("effusion", "albumin", 30.0, "below", 3.4),
    CutPoint("icu_transfer", "oxygen_saturation", 92.0, "below", 3.4),
    CutPoint("septic_shock", "systolic_pressure", 95.0, "below", 3.8),
)
# Logit per standard deviation of the bell curve.
_SLOPES = {
    ("pneumonia", "crp"): 1.0,
    ("heart_failure", "age"): 1.0,
    ("effusion", "crp"): 0.7,
    ("icu_transfer", "heart_rate"): 1.0,
    ("septic_shock", "heart_rate"): 0.8,
}
_SMOKER_WEIGHT = 0.8  # on pneumonia
_ADMISSION_WEIGHTS = (-0.4, 0.8, -0.3)  # on ICU transfer

_IMAGE_RATE = 0.45
_IMAGE_WEIGHTS: Floats = np.diag([4.1, 4.1, 4.1, 4.1, 4.6])  # [I, L]
_CONCEPT_RATE = 0.4
_CONCEPT_WEIGHTS: Floats = np.zeros((len(CONCEPTS), len(LABELS)))  # [C, L]
_CONCEPT_WEIGHTS[:5] = np.diag([3.8, 3.8, 3.8, 3.8, 4.2])
_CONCEPT_WEIGHTS[5, [PNEUMONIA, SEPTIC_SHOCK]] = 1.9
_CONCEPT_WEIGHTS[6, [HEART_FAILURE, EFFUSION, ICU_TRANSFER]] = 1.5
_HEART_FAILURE_ON_EFFUSION = 1.5
_PNEUMONIA_ON_ICU = 1.2


@dataclass(frozen=True, repr=False)
class Findings:
    """What is true of each study, before a hospital loses or recodes any of it.

    ``features`` float64 [N, F] in the order of `FEATURES` (categorical: index of the value),
    ``image`` bool [N, I], ``concepts`` bool [N, C].
    """

    features: Floats
    image: Bools
    concepts: Bools


@dataclass(frozen=True, repr=False)
class Parts:
    """Contributions to the labels' logits: ``features`` [N, F, L], the others [N, L]."""

    features: Floats
    image: Floats
    text: Floats


@dataclass(frozen=True, repr=False)
class Presence:
    """What a study holds: ``features`` bool [N, F], ``image`` and ``text`` bool [N]."""

    features: Bools
    image: Bools
    text: Bools

    def only(self, modalities: Collection[str]) -> "Presence":
        """Hide every modality that is not named."""
        return Presence(
            features=self.features & ("tabular" in modalities),
            image=self.image & ("image" in modalities),
            text=self.text & ("text" in modalities),
        )


def draw_findings(patients: NDArray[np.int64], rng: np.random.Generator) -> Findings:
    """Draw the findings of each study; ``patients`` int64 [N] says whose it is (sorted codes).

    Studies of one patient share the lasting features, and each other finding with
    probability .6, so that a split by study instead of by patient would leak.
    """
    count = int(patients.max()) + 1
    base, fresh = _draw(count, rng), _draw(len(patients), rng)
    mixed = [
        np.where(rng.random(new.shape) < 0.6, old[patients], new)
        for old, new in zip(_arrays(base), _arrays(fresh), strict=True)
    ]
    lasting = [list(FEATURES).index(name) for name in LASTING_FEATURES]
    mixed[0][:, lasting] = base.features[patients][:, lasting]
    return Findings(*mixed)


def parts_of(findings: Findings) -> Parts:
    """Turn findings into their contributions to the logits, each of mean near 0."""
    names = list(FEATURES)
    features = np.zeros((*findings.features.shape, len(LABELS)))
    for cut in CUT_POINTS:
        column = names.index(cut.feature)
        values = findings.features[:, column]
        risk = values > cut.value if cut.direction == "above" else values <= cut.value
        features[:, column, LABELS.index(cut.label)] += cut.weight * (risk - 0.42)
    for (label, name), slope in _SLOPES.items():
        column, (mean, deviation) = names.index(name), _BELLS[name]
        scaled = (findings.features[:, column] - mean) / deviation
        features[:, column, LABELS.index(label)] += slope * scaled
    smoker, admission = names.index("smoker"), names.index("admission")
    features[:, smoker, PNEUMONIA] = _SMOKER_WEIGHT * (findings.features[:, smoker] - _SMOKERS)
    categories = findings.features[:, admission].astype(np.int64)
    features[:, admission, ICU_TRANSFER] = np.array(_ADMISSION_WEIGHTS)[categories]
    return Parts(
        features=features,
        image=(findings.image - _IMAGE_RATE) @ _IMAGE_WEIGHTS,
        text=(findings.concepts - _CONCEPT_RATE) @ _CONCEPT_WEIGHTS,
    )


def draw_labels(logits: Floats, rng: np.random.Generator) -> Bools:
    """Draw labels bool [N, L] from logits [N, L], in the order of their dependence."""
    uniform = rng.random(logits.shape)
    labels = uniform < _sigmoid(logits)
    shifted = logits[:, EFFUSION] + _HEART_FAILURE_ON_EFFUSION * labels[:, HEART_FAILURE]
    labels[:, EFFUSION] = uniform[:, EFFUSION] < _sigmoid(shifted)
    shifted = logits[:, ICU_TRANSFER] + _PNEUMONIA_ON_ICU * labels[:, PNEUMONIA]
    labels[:, ICU_TRANSFER] = uniform[:, ICU_TRANSFER] < _sigmoid(shifted)
    labels[:, SEPTIC_SHOCK] &= labels[:, PNEUMONIA]
    return labels


def marginals(logits: Floats) -> Floats:
    """Return the probability of each label, float64 [N, L], summed over the labels it hangs on."""
    own = _sigmoid(logits)
    failing, infected = own[:, HEART_FAILURE], own[:, PNEUMONIA]
    effusion = _sigmoid(logits[:, EFFUSION] + _HEART_FAILURE_ON_EFFUSION)
    icu = _sigmoid(logits[:, ICU_TRANSFER] + _PNEUMONIA_ON_ICU)
    result = own.copy()
    result[:, EFFUSION] = failing * effusion + (1 - failing) * own[:, EFFUSION]
    result[:, ICU_TRANSFER] = infected * icu + (1 - infected) * own[:, ICU_TRANSFER]
    result[:, SEPTIC_SHOCK] = infected * own[:, SEPTIC_SHOCK]
    return result


def known_probabilities(
    parts: Parts, presence: Presence, bias: Floats, rng: np.random.Generator, draws: int = 128
) -> Floats:
    """Return P(label | what the study holds), float64 [N, L]; ``bias`` [L] is the hospital's.

    What a study lacks is averaged out over that of ``draws`` other studies of the hospital,
    which is unbiased because findings are independent of one another. The others are the same
    for all studies, so that chance does not change their ranking. A study that holds
    everything gets the exact probability.
    """
    blocks = np.concatenate([parts.features, parts.image[:, None], parts.text[:, None]], axis=1)
    held = np.column_stack([presence.features, presence.image, presence.text])
    active = blocks.any(axis=(0, 2))
    blocks, held = blocks[:, active], held[:, active]  # [N, P, L], [N, P]
    base = bias + np.einsum("npl,np->nl", blocks, held)
    result = marginals(base)
    partial = ~held.all(axis=1)
    base, lacks = base[partial], (~held[partial]).astype(np.float64)
    donors = [rng.choice(len(blocks), draws, replace=draws > len(blocks)) for _ in blocks[0]]
    total = np.zeros_like(base)
    for chosen in zip(*donors, strict=True):
        total += marginals(base + lacks @ blocks[chosen, np.arange(len(chosen))])
    result[partial] = total / draws
    return result


def _draw(count: int, rng: np.random.Generator) -> Findings:
    """Draw independent findings of ``count`` studies."""
    columns = []
    for name, feature in FEATURES.items():
        if isinstance(feature, NumericFeature):
            bell = rng.normal(*_BELLS[name], size=count)
            step = 10.0 ** -_DECIMALS.get(name, 1)
            inside = np.clip(np.round(bell / step) * step, feature.low + step, feature.high - step)
            columns.append(np.round(inside, 3))
        elif name == "smoker":
            columns.append((rng.random(count) < _SMOKERS).astype(np.float64))
        elif name == "admission":
            columns.append(rng.choice(len(_ADMISSIONS), count, p=_ADMISSIONS).astype(np.float64))
        else:
            columns.append(rng.integers(0, 2, count).astype(np.float64))
    return Findings(
        features=np.stack(columns, axis=1),
        image=rng.random((count, len(IMAGE_FINDINGS))) < _IMAGE_RATE,
        concepts=rng.random((count, len(CONCEPTS))) < _CONCEPT_RATE,
    )


def _arrays(findings: Findings) -> tuple[NDArray[np.generic], ...]:
    return findings.features, findings.image, findings.concepts


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
