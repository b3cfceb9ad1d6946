"""Univariate thresholds: each feature's best cut for each label, found from histograms alone.

For a (feature, label) pair the cut is the public bin edge that maximises Youden's index
J = |TPR - FPR| (Youden, *Index for rating diagnostic tests*, Cancer 3:32-35, 1950), with the
direction in which the risk lies. Histograms of sites add up to the pooled histogram, so the
selection from their sum is the pooled one, exactly. Everything after the histograms is
post-processing: noised histograms cost privacy once, whatever is chosen from them.

Legend: N studies, F features, L labels, T bins of all features together.
"""

import math
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import BinaryFeature, CategoricalFeature, NumericFeature, Task
from medfusion.errors import ConfigError, FederationError, did_you_mean
from medfusion.options import Options

FloatArray = NDArray[np.float64]
Direction = Literal["above", "below"]


class Threshold(Options):
    """One feature's cut for one label.

    Attributes
    ----------
    feature, label
        Names in the task.
    value
        Cut point of a numeric feature in its own unit, else None.
    category
        Chosen value of a categorical feature, else None.
    direction
        ``above``: the risk lies at x > value, x == category, binary x == 1. ``below``: at the
        other side.
    score
        Youden's J in (0, 1].
    """

    feature: str
    label: str
    value: float | None = None
    category: str | None = None
    direction: Direction
    score: float


class Selection(Options):
    """The thresholds of the ``top_n`` features of each label, by feature, then by label."""

    thresholds: tuple[Threshold, ...]
    top_n: int

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features chosen for any label, in the order of the task."""
        return tuple(dict.fromkeys(threshold.feature for threshold in self.thresholds))

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns into an equal selection."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: dict[str, Any], task: Task) -> Self:
        """Read a selection and check that it fits ``task``; raises `ConfigError`."""
        selection = cls.parse(data, where="selection")
        for threshold in selection.thresholds:
            _check_threshold(threshold, task)
        return selection


def first_study_per_patient(patients: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of each patient's first study, ascending.

    The choice looks at no other patient, so one patient moves at most one study of a histogram.
    """
    _, first = np.unique(patients, return_index=True)
    return np.sort(first).astype(np.int64)


def bin_edges(feature: NumericFeature, bins: int) -> FloatArray:
    """Return the ``bins + 1`` public edges of a numeric feature; bins are (edge, next edge]."""
    return np.linspace(feature.low, feature.high, bins + 1)


def feature_label_histograms(features: FloatArray, labels: NDArray[Any], task: Task) -> FloatArray:
    """Count studies by label, class and bin of each feature.

    Parameters
    ----------
    features
        [N, F], NaN = missing; **one study of each patient** (`first_study_per_patient`).
    labels
        [N, L] in {0, 1}, NaN = unknown (`medfusion.data.labels.binary_labels`).

    Returns
    -------
    Array
        Counts [L, 2, T]; the features' bins follow one another in the order of the task. A
        study without the label, or without the feature, is in none of the pair's cells.
    """
    names = task.labels.names
    # A row of the histogram is (label, class); unknown labels go to a row that is dropped.
    rows = 2 * np.arange(len(names)) + np.nan_to_num(labels, nan=0.0)
    rows = np.where(np.isnan(labels), 2 * len(names), rows).astype(np.int64)
    blocks = []
    for column, feature in enumerate(task.features.values()):
        present = ~np.isnan(features[:, column])
        values = features[present, column]
        width = _bin_count(feature, task)
        if isinstance(feature, NumericFeature):
            bins = np.searchsorted(bin_edges(feature, width)[1:-1], values, side="left")
        else:
            bins = values.astype(np.int64)
        cells = (rows[present] * width + bins[:, None]).ravel()
        counts = np.bincount(cells, minlength=(2 * len(names) + 1) * width)
        blocks.append(counts[: 2 * len(names) * width].reshape(len(names), 2, width))
    return np.concatenate(blocks, axis=2).astype(np.float64)


def selection_sensitivity(task: Task) -> float:
    """Return the L2 sensitivity of `feature_label_histograms` to one patient: sqrt(F L).

    A patient's one study is in at most one cell of each (feature, label) pair, so replacing
    the record by an empty one changes at most F L cells, each by one.
    """
    return math.sqrt(len(task.features) * len(task.labels.names))


def select_features(
    histograms: FloatArray,
    task: Task,
    top_n: int,
    *,
    noise: float = 0.0,
) -> Selection:
    """Choose the ``top_n`` features of each label by Youden's J.

    Parameters
    ----------
    histograms
        [L, 2, T] as from `feature_label_histograms`, summed over sites or noised. Negative
        cells count as zero: the mass that noise adds lowers J where real counts are few.
    noise
        The (public) standard deviation of the noise in each cell. A pair of which either class
        is not above two standard deviations of its total's noise ranks behind all others: its
        J is large by chance.

    Returns
    -------
    Selection
        Ties go to the feature whose name sorts first and, within a feature, to the lowest cut
        or first category. A pair with J = 0 is never selected.

    Raises
    ------
    FederationError
        If the histograms are not finite, or not of the shape that the task implies.
    """
    counts = _checked(histograms, task)
    chosen: list[Threshold] = []
    for row, label in enumerate(task.labels.names):
        ranked: list[tuple[bool, float, str, Threshold]] = []
        start = 0
        for name, feature in task.features.items():
            raw = counts[row, :, start : start + _bin_count(feature, task)]
            start += raw.shape[1]
            pair = np.clip(raw, 0.0, None)
            if pair.sum(axis=1).min() < 1e-9:
                continue
            hidden = bool(raw.sum(axis=1).min() < 2 * noise * math.sqrt(raw.shape[1]))
            for threshold in _best_cut(pair, name, label, task):
                ranked.append((hidden, -threshold.score, name, threshold))
        ranked.sort(key=lambda entry: entry[:3])
        chosen += [threshold for *_, threshold in ranked[:top_n]]
    order = {name: position for position, name in enumerate(task.features)}
    chosen.sort(key=lambda threshold: order[threshold.feature])  # stable: labels stay in order
    return Selection(thresholds=tuple(chosen), top_n=top_n)


def _best_cut(pair: FloatArray, name: str, label: str, task: Task) -> list[Threshold]:
    """Return the best threshold of one pair ([2, bins], both classes present), if J > 0."""
    feature = task.features[name]
    negative, positive = pair.sum(axis=1)
    if isinstance(feature, CategoricalFeature):
        risk_side = pair
    else:  # what lies above each inner edge
        risk_side = pair[:, :0:-1].cumsum(axis=1)[:, ::-1]
    # J's numerator over a common denominator: exact for counts, so equal cuts tie exactly.
    numerator = risk_side[1] * negative - risk_side[0] * positive
    best = int(np.argmax(np.abs(numerator)))
    score = min(float(abs(numerator[best]) / (negative * positive)), 1.0)
    if score <= 0:
        return []
    value = category = None
    if isinstance(feature, NumericFeature):
        value = float(bin_edges(feature, task.task.bins)[best + 1])
    elif isinstance(feature, CategoricalFeature):
        category = feature.values[best]
    direction: Direction = "above" if numerator[best] > 0 else "below"
    return [
        Threshold(
            feature=name,
            label=label,
            value=value,
            category=category,
            direction=direction,
            score=score,
        )
    ]


def _bin_count(feature: NumericFeature | BinaryFeature | CategoricalFeature, task: Task) -> int:
    if isinstance(feature, NumericFeature):
        return task.task.bins
    return len(feature.values) if isinstance(feature, CategoricalFeature) else 2


def _checked(histograms: FloatArray, task: Task) -> FloatArray:
    """Return the histograms, or raise `FederationError` if they are not counts of the task."""
    width = sum(_bin_count(feature, task) for feature in task.features.values())
    expected = (len(task.labels.names), 2, width)
    if histograms.shape != expected:
        raise FederationError(
            f"selection histograms: expected shape {expected}, found {histograms.shape}; "
            "do all sites hold the same task?"
        )
    if not (np.abs(histograms) < 2.0**53).all():  # beyond, a float no longer counts; also NaN
        raise FederationError("selection histograms: expected counts, found NaN or beyond 2^53")
    return histograms.astype(np.float64)


def _check_threshold(threshold: Threshold, task: Task) -> None:
    """Raise `ConfigError` if a threshold names what the task does not have."""
    where = f"selection: threshold of {threshold.feature!r} for {threshold.label!r}: "
    feature = task.features.get(threshold.feature)
    if feature is None:
        near = did_you_mean(threshold.feature, task.features)
        raise ConfigError(f"{where}the task has no such feature{near}")
    if threshold.label not in task.labels.names:
        near = did_you_mean(threshold.label, task.labels.names)
        raise ConfigError(f"{where}the task has no such label{near}")
    numeric = isinstance(feature, NumericFeature)
    categories = feature.values if isinstance(feature, CategoricalFeature) else (None,)
    if (threshold.value is not None) != numeric or threshold.category not in categories:
        raise ConfigError(f"{where}does not fit a {feature.kind} feature of the task")
