"""The tabular encoding: ranges, flags, indicators."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.data.encode import FIRST_INDICATOR, MISSING, SELECTED, VALUE, encode_tabular
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection, Threshold

TASK = Task.parse(
    {
        "task": {"name": "t", "kind": "multilabel"},
        "features": {
            "age": {"kind": "numeric", "low": 20, "high": 100},
            "smoker": {"kind": "binary"},
            "sex": {"kind": "categorical", "values": ["F", "M", "X"]},
        },
        "labels": {"names": ["ill", "dead"]},
    },
    where="test",
)
AGE, SMOKER, F, M, X = range(5)
NAN = float("nan")


def threshold(feature: str, label: str, direction: str, **cut: object) -> Threshold:
    return Threshold.parse(
        {"feature": feature, "label": label, "direction": direction, "score": 0.5, **cut},
        where="test",
    )


def selection(*thresholds: Threshold) -> Selection:
    return Selection(thresholds=thresholds, top_n=3)


def test_values_and_flags_without_a_selection() -> None:
    features = np.array([[20, 0, 1], [60, 1, 0], [130, NAN, NAN]], dtype=float)
    encoded = encode_tabular(features, TASK, None)
    assert encoded.shape == (3, 5, 5)
    assert encoded.dtype == np.float32
    assert encoded[..., VALUE].tolist() == [[-1, -1, 0, 1, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert encoded[..., MISSING].tolist() == [[0] * 5, [0] * 5, [0, 1, 1, 1, 1]]
    assert (encoded[..., SELECTED] == 1).all()
    assert (encoded[..., FIRST_INDICATOR:] == 0).all()


def test_indicators_point_to_the_risk_side() -> None:
    chosen = selection(
        threshold("age", "ill", "above", value=50.0),
        threshold("age", "dead", "below", value=30.0),
        threshold("smoker", "ill", "below"),
        threshold("sex", "dead", "above", category="M"),
        threshold("sex", "ill", "below", category="X"),
    )
    features = np.array([[50, 0, 1], [51, 1, 2], [30, NAN, NAN], [NAN, 0, 0]], dtype=float)
    ill, dead = np.moveaxis(encode_tabular(features, TASK, chosen)[..., FIRST_INDICATOR:], -1, 0)
    assert ill[:, AGE].tolist() == [-1, 1, -1, 0]  # a value at the cut is not above it
    assert dead[:, AGE].tolist() == [-1, -1, 1, 0]
    assert ill[:, SMOKER].tolist() == [1, -1, 0, 1]
    assert dead[:, SMOKER].tolist() == [0, 0, 0, 0]
    assert dead[:, M].tolist() == [1, -1, 0, -1]
    assert ill[:, X].tolist() == [1, -1, 0, 1]
    assert (ill[:, [F, M]] == 0).all()
    assert (dead[:, [F, X]] == 0).all()


def test_unselected_features_are_silent_but_still_flagged_missing() -> None:
    chosen = selection(threshold("smoker", "ill", "above"))
    features = np.array([[60, 1, 0], [NAN, NAN, NAN]], dtype=float)
    encoded = encode_tabular(features, TASK, chosen)
    unselected = encoded[:, [AGE, F, M, X]]
    assert (unselected[..., [VALUE, SELECTED, *range(FIRST_INDICATOR, 5)]] == 0).all()
    assert encoded[..., MISSING].tolist() == [[0] * 5, [1] * 5]
    assert encoded[:, SMOKER, SELECTED].tolist() == [1, 1]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_infinity=True, allow_nan=True),
            st.sampled_from([0.0, 1.0, NAN]),
            st.sampled_from([0.0, 1.0, 2.0, NAN]),
        ),
        max_size=8,
    ),
    st.sampled_from(["above", "below"]),
    st.booleans(),
)
def test_encoding_is_always_finite_and_within_one(
    rows: list[tuple[float, float, float]], direction: str, all_selected: bool
) -> None:
    features = np.array(rows, dtype=float).reshape(-1, 3)
    chosen = selection(threshold("age", "ill", direction, value=50.0))
    encoded = encode_tabular(features, TASK, None if all_selected else chosen)
    assert not np.isnan(encoded).any()
    assert (np.abs(encoded) <= 1).all()
