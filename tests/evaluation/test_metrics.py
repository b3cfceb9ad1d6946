"""Metrics against scikit-learn, and where they are undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from medfusion.errors import FederationError
from medfusion.evaluation.metrics import Metrics, metrics_from_logits, reliability, sigmoid


def ece_by_loop(probability: np.ndarray, truth: np.ndarray) -> float:
    total = 0.0
    for number in range(10):
        inside = np.floor(probability * 10).clip(0, 9) == number
        if inside.any():
            total += inside.sum() * abs(probability[inside].mean() - truth[inside].mean())
    return total / len(truth)


def assert_equal_to_sklearn(
    metrics: Metrics, logits: np.ndarray, labels: np.ndarray, known: np.ndarray
) -> None:
    """``metrics`` agree with scikit-learn on these raw scores, None exactly where undefined."""
    for column in range(logits.shape[1]):
        keep = known[:, column] > 0
        truth, score = labels[keep, column], logits[keep, column]
        probability = sigmoid(score)
        if len(np.unique(truth)) == 2:
            assert metrics.auroc[column] == pytest.approx(roc_auc_score(truth, score))
            assert metrics.auprc[column] == pytest.approx(average_precision_score(truth, score))
        else:
            assert metrics.auroc[column] is None
            assert metrics.auprc[column] is None
        if len(truth):
            brier = brier_score_loss(truth, probability, pos_label=1)
            assert metrics.brier[column] == pytest.approx(brier)
            assert metrics.ece[column] == pytest.approx(ece_by_loop(probability, truth))
        else:
            assert metrics.brier[column] is None
            assert metrics.ece[column] is None


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), decimals=st.integers(0, 3))
def test_metrics_equal_sklearn(seed: int, count: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 3)).round(decimals)  # few decimals: many ties
    labels = (rng.random((count, 3)) < (0.5, 0.1, 0.0)).astype(np.float32)
    known = (rng.random((count, 3)) < 0.8).astype(np.float32)
    metrics = metrics_from_logits(logits, labels, known)
    assert_equal_to_sklearn(metrics, logits, labels, known)


def test_values_of_unknown_labels_are_ignored() -> None:
    logits = np.array([[1.0], [2.0], [9.0]])
    known = np.array([[1], [1], [0]])
    one = metrics_from_logits(logits, np.array([[0], [1], [0]]), known)
    other = metrics_from_logits(logits, np.array([[0], [1], [1]]), known)
    assert one == other
    assert one.auroc == (1.0,)


def test_macro_is_the_mean_over_labels_that_have_a_value() -> None:
    metrics = Metrics(auroc=(0.5, None, 0.7), auprc=(None,), brier=(0.1, 0.3), ece=(0.2,))
    assert metrics.auroc_macro == pytest.approx(0.6)
    assert metrics.auprc_macro is None
    summary = Metrics((0.5, None), (0.5, None), (0.1, 0.3), (0.2, None)).to_json(["a", "b"])
    assert summary == {
        "auroc_macro": 0.5,
        "auprc_macro": 0.5,
        "auroc": {"a": 0.5, "b": None},
        "brier": pytest.approx(0.2),
        "ece": pytest.approx(0.2),
    }


def test_nan_predictions_are_refused() -> None:
    logits = np.array([[0.0], [np.nan]])
    with pytest.raises(FederationError, match=r"gave NaN: it diverged"):
        metrics_from_logits(logits, np.zeros((2, 1)), np.ones((2, 1)))


def test_reliability_groups_by_predicted_probability() -> None:
    counts = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 4.0]])
    size, predicted, observed = reliability(counts, np.array([0.05, 0.06, 1.0]))
    assert size.tolist() == [4, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert predicted[[0, 9]].tolist() == pytest.approx([0.055, 1.0])
    assert observed[[0, 9]].tolist() == [0.25, 1.0]
    assert np.isnan(observed[1:9]).all()
