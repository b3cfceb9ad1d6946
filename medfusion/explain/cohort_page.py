"""What the page shows of all studies together.

Legend: N studies, L labels, F features, T tokens, W word pieces.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medfusion.data.task import NumericFeature, Task
from medfusion.evaluation.report.svg import DASHES, PALETTE, Curve, line_chart
from medfusion.explain.attention import LabelAttention
from medfusion.explain.case_page import value_text
from medfusion.explain.cohort import FloatArray, contrast, importance
from medfusion.explain.generated_weights import Sweep
from medfusion.explain.heat_tables import HeatTable, contrast_table, heat_table, importance_table
from medfusion.explain.studies import Explained, ToExplain

_FEATURES, _WORDS = 20, 15


def cohort_content(
    what: ToExplain, drawn: NDArray[np.int64], found: Explained, sweeps: Sequence[Sweep]
) -> dict[str, Any] | None:
    """Return what the template shows of the studies ``drawn``, of which ``found`` tells.

    None where they are of fewer patients than the site's ``min_patients``: what is said of so few
    is said of each of them.
    """
    studies, task = what.data.studies.take(drawn), what.data.task
    least = max(what.data.config.policy.min_patients, 1)
    if studies.n_patients < least:
        return None
    patients, labels, names = studies.patient_ids, task.labels.names, list(task.features)
    features = words = helps = None
    if found.features is not None:
        figures = importance(found.features, patients, min_patients=least)
        assert figures is not None
        features = importance_table("feature", labels, names, figures, most=_FEATURES)
        if task.detects:
            has, known = np.nan_to_num(studies.labels), ~np.isnan(studies.labels)
            against = contrast(found.features, has, known, patients, min_patients=least)
            helps = contrast_table(labels, names, against)
    if found.tokens is not None:
        words = _word_table(what, drawn, found.tokens, patients, least)
    return {
        "studies": len(studies),
        "patients": studies.n_patients,
        "least": least,
        "features": features,
        "helps": helps,
        "words": words,
        **_attention_tables(task, found.attention),
        "sweeps": _sweep_table(sweeps),
        "charts": [_chart(task, sweep) for sweep in sweeps if _is_numeric(task, sweep)],
    }


def _word_table(
    what: ToExplain,
    drawn: NDArray[np.int64],
    tokens_NLT: FloatArray,
    patients: NDArray[Any],
    least: int,
) -> HeatTable | None:
    """Return the word pieces that matter most, of those that ``least`` patients have."""
    names = [what.token_names(ids) for ids in what.inputs(drawn)["tokens"].cpu().numpy()]
    of_patients: dict[str, set[str]] = {}
    for patient, pieces in zip(patients, names, strict=True):
        for piece in set(pieces) - {""}:
            of_patients.setdefault(piece, set()).add(str(patient))
    words = sorted(piece for piece, those in of_patients.items() if len(those) >= least)
    if not words:
        return None
    place = {word: number for number, word in enumerate(words)}
    added = np.zeros((*tokens_NLT.shape[:2], len(words)))
    for study, pieces in enumerate(names):
        for token, piece in enumerate(pieces):
            if piece in place:
                added[study, :, place[piece]] += tokens_NLT[study, :, token]
    figures = importance(added, patients, min_patients=least)
    assert figures is not None
    labels = what.data.task.labels.names
    return importance_table("word piece", labels, words, figures, most=_WORDS)


def _attention_tables(task: Task, attention: LabelAttention | None) -> dict[str, Any]:
    """Return means over studies: of the evidence, and of what labels take in of one another."""
    labels = task.labels.names
    if attention is None:
        return {"evidence": None, "dependencies": None}
    evidence = np.stack([x.mean(dim=0).cpu().numpy() for x in attention.evidence.values()])
    dependencies = None
    if attention.among_labels is not None and len(labels) > 1:
        among = attention.among_labels.mean(dim=0).cpu().numpy().T
        dependencies = heat_table("takes in", labels, labels, among)
    return {
        "evidence": heat_table("modality", labels, list(attention.evidence), evidence),
        "dependencies": dependencies,
    }


def _sweep_table(sweeps: Sequence[Sweep]) -> HeatTable | None:
    """Return the largest change of each layer over each feature's range."""
    if not sweeps:
        return None
    layers = list(sweeps[0].change)
    largest = np.array([[sweep.change[layer].max() for layer in layers] for sweep in sweeps])
    return heat_table("feature", layers, [sweep.feature for sweep in sweeps], largest)


def _is_numeric(task: Task, sweep: Sweep) -> bool:
    return isinstance(task.features[sweep.feature], NumericFeature)


def _chart(task: Task, sweep: Sweep) -> tuple[str, Markup]:
    """Draw how far each layer is from where it is at the low end of a feature's range."""
    feature = task.features[sweep.feature]
    assert isinstance(feature, NumericFeature)
    curves = [
        Curve(
            points=np.stack([sweep.values, change], axis=1),
            color=PALETTE[number % len(PALETTE)],
            dash=DASHES[number % len(PALETTE)],
            name=layer,
        )
        for number, (layer, change) in enumerate(sweep.change.items())
    ]
    top = max(float(change.max()) for change in sweep.change.values()) or 1.0
    chart = line_chart(
        curves,
        x=feature.unit or "value",
        y="change of the weights",
        x_range=(feature.low, feature.high),
        y_range=(0.0, 1.05 * top),
        alt=f"Change of the generated weights over the range of {sweep.feature}",
    )
    return f"{sweep.feature}: from {value_text(feature, feature.low)}", chart
