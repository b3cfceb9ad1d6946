"""What the page shows of one study.

Legend: L labels, F features, T tokens, D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import BinaryFeature, CategoricalFeature, Feature, Task
from medfusion.evaluation.report.wording import number
from medfusion.explain.attention import LabelAttention
from medfusion.explain.case_images import box_figure, label_figures, plain_figures
from medfusion.explain.heat_tables import HeatTable, heat_table
from medfusion.explain.studies import Explained, ToExplain
from medfusion.models.hyperfusion import HyperFusion

_LABELS = 3  # those with the highest scores are shown in pictures and notes
_FEATURES = 12


@dataclass(frozen=True)
class Token:
    """A word piece, and how strongly it speaks for (or against) a label, in percent."""

    text: str
    percent: int
    side: str


def case_content(what: ToExplain, study: int, found: Explained) -> dict[str, Any]:
    """Return what the template shows of the study at a row of ``what.data.studies``.

    ``found`` is of that study alone.
    """
    studies, task = what.data.studies, what.data.task
    inputs = what.inputs(np.array([study]))
    picked = _likeliest(what, study)
    image = inputs["image"][0].cpu().numpy() if _has_image(what, study) else None
    pictures, plain = [], []
    if image is not None and task.detects:
        boxes = what.truth.boxes if what.truth else None
        drawn = (boxes.corners[study], boxes.classes[study]) if boxes else None
        plain = [box_figure(image, what.outputs[study], drawn, task.labels.names)]
    elif image is not None:
        plain = plain_figures(image)
        exclusive = task.task.kind == "multiclass"
        pictures = label_figures(
            what.saved.module,
            inputs,
            found.attention,
            picked,
            exclusive=exclusive,
            images_at_once=what.data.config.compute.physical_batch,
        )
    name = str(studies.study_ids[study])
    return {
        "name": name,
        "columns": what.table.header[1:],
        "said": [row[1:] for row in what.table.rows if row[0] == name],
        "truth": _truth(what, study),
        "plain": plain,
        "pictures": pictures,
        "integrated": isinstance(what.saved.module, HyperFusion),
        "features": _feature_table(what, study, found),
        "notes": _notes(what, inputs, found, picked),
        **_looks(task, found.attention),
    }


def _has_image(what: ToExplain, study: int) -> bool:
    reads = "image" in what.saved.module.modalities
    return reads and what.data.studies.images[study] is not None


def _likeliest(what: ToExplain, study: int) -> list[tuple[int, str]]:
    """Return number and name of the labels with the highest scores; of a detector none."""
    names = what.data.task.labels.names
    if what.data.task.detects:
        return []
    order = np.argsort(-what.outputs[study], kind="stable")[:_LABELS]
    return [(int(label), names[label]) for label in order]


def _truth(what: ToExplain, study: int) -> list[str]:
    """Return what is known of the labels, in words; boxes are in the picture."""
    task = what.data.task
    if task.detects or what.truth is None:
        return []
    labels = what.truth.labels[study]
    if task.task.kind == "regression":
        known = [(name, value) for name, value in zip(task.labels.names, labels, strict=True)]
        return [f"{n}: {number(float(v))} {task.labels.unit}" for n, v in known if np.isfinite(v)]
    of = dict(zip(task.labels.names, labels, strict=True))
    if task.task.kind == "multiclass":
        return [name for name, value in of.items() if value == 1]
    return [f"{name}: {int(value)}" for name, value in of.items() if np.isfinite(value)]


def _feature_table(what: ToExplain, study: int, found: Explained) -> HeatTable | None:
    """Return what each feature adds to each label, those that matter most first."""
    if found.features is None:
        return None
    task, values = what.data.task, what.data.studies.features[study]
    added = found.features[0]
    order = np.argsort(-np.abs(added).max(axis=0), kind="stable")[:_FEATURES]
    names = list(task.features)
    rows = [f"{names[n]} = {value_text(task.features[names[n]], values[n])}" for n in order]
    return heat_table("feature", task.labels.names, rows, added.T[order])


def value_text(feature: Feature, value: float) -> str:
    """Write a feature's value as a reader knows it."""
    if np.isnan(value):
        return "missing"
    if isinstance(feature, CategoricalFeature):
        return feature.values[int(value)]
    if isinstance(feature, BinaryFeature):
        return "yes" if value else "no"
    return f"{number(float(value))} {feature.unit}".rstrip()


def _notes(
    what: ToExplain, inputs: dict[str, Any], found: Explained, picked: Sequence[tuple[int, str]]
) -> list[tuple[str, list[Token]]]:
    """Return the note for each picked label, word piece by word piece; empty without a note."""
    if found.tokens is None or not bool((inputs["tokens"] > 0).any()):
        return []
    names = what.token_names(inputs["tokens"][0].cpu().numpy())
    largest = float(np.abs(found.tokens[0]).max()) or 1.0
    return [(label, _tokens(names, found.tokens[0, of], largest)) for of, label in picked]


def _tokens(names: Sequence[str], added_T: NDArray[Any], largest: float) -> list[Token]:
    percents = [round(100 * value / largest) for value in added_T.tolist()]
    return [
        Token(text, abs(percent), "for" if percent >= 0 else "against")
        for text, percent in zip(names, percents, strict=True)
        if text
    ]


def _looks(task: Task, attention: LabelAttention | None) -> dict[str, Any]:
    """Return where the labels' queries look: by modality, by column, by label."""
    if attention is None:
        return {"evidence": None, "column_attention": None, "label_attention": None}
    labels = task.labels.names
    columns = label_attention = None
    if "tabular" in attention.weights:
        names = ["the modality itself", *(_column_name(task, n) for n in range(len(task.columns)))]
        weights = attention.weights["tabular"][0].cpu().numpy().T
        order = np.argsort(-weights.max(axis=1), kind="stable")[:_FEATURES]
        columns = heat_table("column", labels, [names[one] for one in order], weights[order])
    if attention.among_labels is not None and len(labels) > 1:
        among = attention.among_labels[0].cpu().numpy().T
        label_attention = heat_table("other label", labels, labels, among)
    evidence = np.stack([x[0].cpu().numpy() for x in attention.evidence.values()])
    return {
        "evidence": heat_table("modality", labels, list(attention.evidence), evidence),
        "column_attention": columns,
        "label_attention": label_attention,
    }


def _column_name(task: Task, place: int) -> str:
    """Name a model-input column: its feature, and its value where it has one."""
    column = task.columns[place]
    return column.feature if column.value is None else f"{column.feature} = {column.value}"
