"""Univariate thresholds against an independent search, and the laws of their histograms."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_curve

from medfusion.data.task import Task
from medfusion.data.thresholds import (
    Selection,
    Threshold,
    feature_label_histograms,
    first_study_per_patient,
    select_features,
    selection_sensitivity,
)
from medfusion.errors import ConfigError, FederationError

BINS = 10


def make_task(**features: dict[str, Any]) -> Task:
    return Task.parse(
        {
            "task": {"name": "t", "kind": "multilabel", "bins": BINS},
            "features": features
            or {
                "age": {"kind": "numeric", "low": 0, "high": 100, "unit": "year"},
                "smoker": {"kind": "binary"},
                "sex": {"kind": "categorical", "values": ["F", "M", "X"]},
                "saturation": {"kind": "numeric", "low": -1, "high": 1},
            },
            "labels": {"names": ["ill", "dead"]},
        },
        where="test",
    )


TASK = make_task()
CELLS = 2 * BINS + 2 + 3


def draw_patients(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features with signal in varied directions, and labels; both with gaps."""
    labels = (rng.random((count, 2)) < (0.4, 0.2)).astype(float)
    ill, dead = labels.T
    features = np.column_stack(
        [
            np.clip(rng.normal(50 + 15 * ill, 15), 0, 100).round(),
            rng.random(count) < 0.3 + 0.3 * dead,
            (rng.integers(0, 3, count) + (rng.random(count) < 0.3) * ill) % 3,
            np.clip(rng.normal(0.3 - 0.4 * ill, 0.3), -1, 1),
        ]
    )
    features[rng.random(features.shape) < 0.2] = np.nan
    labels[rng.random(labels.shape) < 0.2] = np.nan
    return features, labels


def youden_by_roc_curve(values: np.ndarray, truth: np.ndarray) -> float:
    """The largest |TPR - FPR| over all cuts of ``values``, by scikit-learn."""
    false, true, _ = roc_curve(truth, values, drop_intermediate=False)
    return float(np.abs(true - false).max())


def independent_scores(features: np.ndarray, labels: np.ndarray) -> dict[tuple[str, str], float]:
    scores = {}
    for column, (name, feature) in enumerate(TASK.features.items()):
        for row, label in enumerate(TASK.labels.names):
            known = ~np.isnan(features[:, column]) & ~np.isnan(labels[:, row])
            values, truth = features[known, column], labels[known, row]
            if feature.kind == "categorical":
                one_vs_rest = [values == code for code in range(len(feature.values))]
                score = max(youden_by_roc_curve(one, truth) for one in one_vs_rest)
            elif feature.kind == "numeric":
                edges = np.linspace(feature.low, feature.high, BINS + 1)[1:-1]
                score = youden_by_roc_curve((values[:, None] > edges).sum(axis=1), truth)
            else:
                score = youden_by_roc_curve(values, truth)
            scores[name, label] = score
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_an_independent_search(seed: int) -> None:
    features, labels = draw_patients(np.random.default_rng(seed), 200)
    selection = select_features(feature_label_histograms(features, labels, TASK), TASK, 4)
    found = {(t.feature, t.label): t.score for t in selection.thresholds}
    assert found == pytest.approx(independent_scores(features, labels), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_each_threshold_attains_its_score_on_the_patients(seed: int) -> None:
    features, labels = draw_patients(np.random.default_rng(seed), 200)
    selection = select_features(feature_label_histograms(features, labels, TASK), TASK, 4)
    assert {t.direction for t in selection.thresholds} == {"above", "below"}
    for threshold in selection.thresholds:
        values = features[:, list(TASK.features).index(threshold.feature)]
        truth = labels[:, TASK.labels.names.index(threshold.label)]
        known = ~np.isnan(values) & ~np.isnan(truth)
        if threshold.category is not None:
            upper = values == ("F", "M", "X").index(threshold.category)
        else:
            upper = values > (0.5 if threshold.value is None else threshold.value)
        at_risk = upper if threshold.direction == "above" else ~upper
        rates = [at_risk[known & (truth == outcome)].mean() for outcome in (0, 1)]
        assert rates[1] - rates[0] == pytest.approx(threshold.score, abs=1e-12)


def test_value_on_an_edge_lies_below_the_cut() -> None:
    task = make_task(age={"kind": "numeric", "low": 0, "high": 100})
    features = np.array([[40.0], [40.0], [40.001], [41.0]])
    labels = np.array([[0, np.nan], [0, np.nan], [1, np.nan], [1, np.nan]])
    selection = select_features(feature_label_histograms(features, labels, task), task, 1)
    assert selection.thresholds == (
        Threshold(feature="age", label="ill", value=40.0, direction="above", score=1.0),
    )


def test_values_outside_the_public_range_fall_into_the_outer_bins() -> None:
    task = make_task(age={"kind": "numeric", "low": 0, "high": 100})
    features = np.array([[-5.0], [0.0], [100.0], [500.0]])
    histograms = feature_label_histograms(features, np.ones((4, 2)), task)
    assert histograms[0, 1, [0, -1]].tolist() == [2.0, 2.0]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 5), top_n=st.integers(1, 4))
def test_summed_sites_give_the_pooled_selection_exactly(seed: int, sites: int, top_n: int) -> None:
    rng = np.random.default_rng(seed)
    features, labels = draw_patients(rng, int(rng.integers(1, 150)))
    site = rng.integers(0, sites, len(features))
    pooled = feature_label_histograms(features, labels, TASK)
    summed = np.zeros_like(pooled)
    for number in range(sites):
        mine = site == number
        summed += feature_label_histograms(features[mine], labels[mine], TASK)
    assert np.array_equal(summed, pooled)
    assert select_features(summed, TASK, top_n) == select_features(pooled, TASK, top_n)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_one_patient_moves_the_histograms_by_at_most_the_sensitivity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, labels = draw_patients(rng, 20)
    features[0], labels[0] = [50, 1, 2, 0], [1, 0]  # a complete record: the worst case
    emptied, blank = features.copy(), labels.copy()
    victim = int(rng.integers(0, 20)) if seed % 2 else 0
    emptied[victim], blank[victim] = np.nan, np.nan
    change = feature_label_histograms(features, labels, TASK) - feature_label_histograms(
        emptied, blank, TASK
    )
    moved = np.linalg.norm(change)
    assert moved <= selection_sensitivity(TASK) + 1e-12
    if victim == 0:  # the bound is attained, so it is not generous either
        assert moved == pytest.approx(selection_sensitivity(TASK))


@settings(deadline=None, max_examples=60)
@given(
    histograms=arrays(np.float64, (2, 2, CELLS), elements=st.floats(-1e6, 1e6)),
    top_n=st.integers(1, 5),
)
def test_noised_histograms_always_give_a_valid_selection(
    histograms: np.ndarray, top_n: int
) -> None:
    selection = select_features(histograms, TASK, top_n)
    for label in TASK.labels.names:
        scores = [t.score for t in selection.thresholds if t.label == label]
        assert len(scores) <= top_n
        assert all(0 < score <= 1 for score in scores)
    assert Selection.from_json(json.loads(json.dumps(selection.to_json())), TASK) == selection


def test_noise_hides_neither_a_strong_feature_nor_its_cut() -> None:
    rng = np.random.default_rng(0)
    ill = rng.random(4000) < 0.4
    age = np.where(ill, rng.uniform(60, 100, 4000), rng.uniform(0, 60, 4000))
    labels = np.column_stack([ill, np.full(4000, np.nan)]).astype(float)
    noise_features = [rng.integers(0, high, 4000) for high in (2, 3)]
    features = np.column_stack([age, *noise_features, rng.uniform(-1, 1, 4000)])
    histograms = feature_label_histograms(features, labels, TASK)
    noised = histograms + rng.normal(0, 10, histograms.shape)
    best = select_features(noised, TASK, 1, noise=10.0).thresholds
    cuts = [(t.feature, t.value, t.direction) for t in best if t.label == "ill"]
    assert cuts == [("age", 60.0, "above")]


def test_noise_does_not_lift_features_that_few_patients_have() -> None:
    rng = np.random.default_rng(1)
    ill = rng.random(3000) < 0.4
    features = np.full((3000, 4), np.nan)
    features[:, 0] = np.clip(rng.normal(45 + 20 * ill, 15), 0, 100)
    features[:40, 3] = rng.uniform(-1, 1, 40)  # no signal, few patients; two have none at all
    labels = np.column_stack([ill, np.full(3000, np.nan)]).astype(float)
    histograms = feature_label_histograms(features, labels, TASK)
    lifted, kept = 0, []
    for _ in range(50):
        noised = histograms + rng.normal(0, 10, histograms.shape)
        best = select_features(noised, TASK, 1, noise=10).thresholds
        lifted += next(t.feature for t in best if t.label == "ill") != "age"
        kept.append(len(select_features(noised, TASK, 4, noise=10).features))
    assert lifted == 0
    assert max(kept) == 4  # ranked last, but not lost


def test_negative_cells_count_as_zero() -> None:
    histograms = np.zeros((2, 2, CELLS))
    histograms[0, 0, BINS : BINS + 2] = [6.0, -5.0]  # the binary feature
    histograms[0, 1, BINS : BINS + 2] = [2.0, 2.0]
    (threshold,) = select_features(histograms, TASK, 1).thresholds
    assert (threshold.feature, threshold.score) == ("smoker", 0.5)


def test_ties_go_to_the_first_name_then_to_the_lowest_cut() -> None:
    numeric = {"kind": "numeric", "low": 0, "high": 10}
    task = make_task(b=numeric, a=numeric, c={"kind": "categorical", "values": ["z", "y", "x"]})
    values = np.array([1.5, 1.5, 8.5, 8.5])  # every cut from 2 to 8 separates perfectly
    features = np.column_stack([values, values, [0, 0, 1, 1]])
    labels = np.column_stack([[0, 0, 1, 1], np.full(4, np.nan)])
    histograms = feature_label_histograms(features, labels, task)
    (winner,) = select_features(histograms, task, 1).thresholds
    assert (winner.feature, winner.value) == ("a", 2.0)
    three = select_features(histograms, task, 3)
    assert three.features == ("b", "a", "c")  # listed as in the task
    category = three.thresholds[-1]
    assert (category.category, category.direction) == ("z", "below")


def test_ties_between_differing_denominators_are_exact() -> None:
    """J = 1/3 from 3 + 3 patients equals J = 1/3 from 9 + 12: the name decides."""
    task = make_task(b={"kind": "binary"}, a={"kind": "binary"})
    histograms = np.zeros((2, 2, 4))
    histograms[0, :, :2] = [[2, 1], [1, 2]]  # b
    histograms[0, :, 2:] = [[8, 4], [3, 6]]  # a
    (winner,) = select_features(histograms, task, 1).thresholds
    assert winner.feature == "a"


def test_pairs_without_both_classes_or_without_signal_are_not_selected() -> None:
    features = np.array([[10.0, 1, 0, 0.5], [90.0, 1, 0, 0.5]] * 3)
    labels = np.column_stack([[0, 1] * 3, np.ones(6)])
    histograms = feature_label_histograms(features, labels, TASK)
    selection = select_features(histograms, TASK, 4)
    assert [(t.feature, t.label) for t in selection.thresholds] == [("age", "ill")]


def test_wrong_histograms_are_refused() -> None:
    with pytest.raises(FederationError, match=r"expected shape \(2, 2, 25\), found \(2, 2, 24\)"):
        select_features(np.zeros((2, 2, 24)), TASK, 1)
    with pytest.raises(FederationError, match="NaN"):
        select_features(np.full((2, 2, 25), np.nan), TASK, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": "agee"}, r"no such feature \(did you mean 'age'\?\)"),
        ({"label": "il"}, r"no such label \(did you mean 'ill'\?\)"),
        ({"value": None}, "does not fit a numeric feature"),
        ({"feature": "sex"}, "does not fit a categorical feature"),
        ({"feature": "sex", "value": None, "category": "Q"}, "does not fit a categorical"),
        ({"direction": "left"}, "direction"),
        ({"scores": 1}, r"unknown key .*scores.* \(did you mean 'score'\?\)"),
    ],
)
def test_selection_that_does_not_fit_the_task_is_refused(
    change: dict[str, Any], message: str
) -> None:
    good = {"feature": "age", "label": "ill", "value": 1.0, "direction": "above", "score": 0.5}
    Selection.from_json({"thresholds": [good], "top_n": 1}, TASK)
    with pytest.raises(ConfigError, match=message):
        Selection.from_json({"thresholds": [good | change], "top_n": 1}, TASK)


def test_first_study_of_each_patient() -> None:
    patients = np.array(["b", "a", "b", "c", "a"])
    assert first_study_per_patient(patients).tolist() == [0, 1, 3]
