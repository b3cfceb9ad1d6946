"""The model's view of tabular features: value, missing flag, selected flag, indicators.

Legend: N studies, F features, K model-input columns, L labels.
"""

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import CategoricalFeature, NumericFeature, Task
from medfusion.data.thresholds import Selection, Threshold

VALUE, MISSING, SELECTED, FIRST_INDICATOR = 0, 1, 2, 3


def encode_tabular(
    features: NDArray[np.float64], task: Task, selection: Selection | None
) -> NDArray[np.float32]:
    """Encode features [N, F] (NaN = missing) as [N, K, 3 + L].

    The last axis holds

    - the value: a numeric one scaled from the public range to [-1, 1] and clamped; binary as
      -1 or 1; each column of a categorical feature as 0 or 1;
    - 1 where the feature is missing (which is not the same as unselected);
    - 1 if the feature is selected;
    - for each label an indicator: 1 on the risk side of that label's threshold, -1 on the
      other, 0 without a threshold; for a categorical feature on the chosen category's column.

    Value and indicators are 0 where the feature is missing or unselected. Without a selection
    every feature is selected and no threshold exists.
    """
    encoded = np.zeros(
        (len(features), len(task.columns), FIRST_INDICATOR + len(task.labels.names)), np.float32
    )
    position = {name: number for number, name in enumerate(task.features)}
    selected = position.keys() if selection is None else set(selection.features)
    for number, column in enumerate(task.columns):
        raw = features[:, position[column.feature]]
        encoded[:, number, MISSING] = np.isnan(raw)
        if column.feature in selected:
            encoded[:, number, VALUE] = _value(raw, task, column.feature, column.value)
            encoded[:, number, SELECTED] = 1.0
    labels = {name: number for number, name in enumerate(task.labels.names)}
    columns = {(column.feature, column.value): n for n, column in enumerate(task.columns)}
    for threshold in selection.thresholds if selection else ():
        raw = features[:, position[threshold.feature]]
        number = columns[threshold.feature, threshold.category]
        indicator = FIRST_INDICATOR + labels[threshold.label]
        encoded[:, number, indicator] = _indicator(raw, task, threshold)
    return encoded


def _value(
    raw: NDArray[np.float64], task: Task, name: str, category: str | None
) -> NDArray[np.float64]:
    """Scale one feature [N] for one column; 0 where missing."""
    feature = task.features[name]
    if isinstance(feature, NumericFeature):
        share = (raw - feature.low) / (feature.high - feature.low)
        value = 2.0 * np.clip(share, 0.0, 1.0) - 1.0
    elif isinstance(feature, CategoricalFeature):
        assert category is not None
        value = (raw == feature.values.index(category)).astype(np.float64)
    else:
        value = 2.0 * raw - 1.0
    return np.where(np.isnan(raw), 0.0, value)


def _indicator(raw: NDArray[np.float64], task: Task, threshold: Threshold) -> NDArray[np.float64]:
    """Return +1 on the risk side, -1 on the other, 0 where missing [N]."""
    feature = task.features[threshold.feature]
    if threshold.value is not None:
        upper = raw > threshold.value
    elif isinstance(feature, CategoricalFeature):
        assert threshold.category is not None
        upper = raw == feature.values.index(threshold.category)
    else:
        upper = raw == 1
    side = np.where(upper == (threshold.direction == "above"), 1.0, -1.0)
    return np.where(np.isnan(raw), 0.0, side)
