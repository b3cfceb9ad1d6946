"""Score histograms: metrics at bin centres, additivity, sensitivity, noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from medfusion.errors import FederationError
from medfusion.evaluation.metrics import sigmoid
from medfusion.evaluation.score_histograms import (
    bin_centres,
    consistent,
    metrics_from_histogram,
    score_histogram,
    score_sensitivity,
)


def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (some beyond the grid), labels, known, each [N, 3]."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < (0.5, 0.2, 0.02)).astype(np.float32)
    logits = rng.normal(2 * labels - 1, 4).astype(np.float32)
    known = (rng.random((count, 3)) < 0.8).astype(np.float32)
    return logits, labels, known


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 80), bins=st.sampled_from([32, 256]))
def test_metrics_equal_those_of_scores_at_the_bin_centres(seed: int, count: int, bins: int) -> None:
    logits, labels, known = draw(seed, count)
    centres = np.linspace(-8, 8, 2 * bins + 1)[1::2]  # written apart from the code
    nearest = np.abs(logits[..., None] - centres).argmin(axis=-1)
    metrics = metrics_from_histogram(score_histogram(logits, labels, known, bins=bins))
    for column in range(3):
        keep = known[:, column] > 0
        truth, score = labels[keep, column], centres[nearest[keep, column]]
        if len(np.unique(truth)) == 2:
            assert metrics.auroc[column] == pytest.approx(roc_auc_score(truth, score))
            assert metrics.auprc[column] == pytest.approx(average_precision_score(truth, score))
        else:
            assert metrics.auroc[column] is None
            assert metrics.auprc[column] is None
        if len(truth):
            brier = brier_score_loss(truth, 1 / (1 + np.exp(-score)), pos_label=1)
            assert metrics.brier[column] == pytest.approx(brier)


def test_bin_centres() -> None:
    assert bin_centres(4).tolist() == [-6, -2, 2, 6]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), sites=st.integers(1, 5))
def test_summed_sites_equal_the_pooled_histogram_exactly(seed: int, sites: int) -> None:
    logits, labels, known = draw(seed, 100)
    site = np.random.default_rng(seed).integers(0, sites, 100)
    parts = [
        score_histogram(logits[site == k], labels[site == k], known[site == k])
        for k in range(sites)
    ]
    pooled = score_histogram(logits, labels, known)
    assert np.array_equal(sum(parts), pooled)
    assert pooled.sum() == known.sum()


def test_one_patient_moves_one_cell_for_each_label() -> None:
    logits, labels, known = draw(0, 20)
    known[3] = 1
    without = np.delete(np.arange(20), 3)
    change = score_histogram(logits, labels, known) - score_histogram(
        logits[without], labels[without], known[without]
    )
    assert np.linalg.norm(change) == pytest.approx(score_sensitivity(3))


def test_nan_is_refused_and_infinity_is_clipped() -> None:
    ones = np.ones((2, 1))
    histogram = score_histogram(np.array([[np.inf], [-np.inf]]), ones, ones, bins=4)
    assert histogram.tolist() == [[[0, 0, 0, 0], [1, 0, 0, 1]]]
    with pytest.raises(FederationError, match="NaN"):
        score_histogram(np.array([[np.nan], [0.0]]), ones, ones)


@settings(deadline=None)
@given(arrays(np.float64, (2, 2, 16), elements=st.floats(-100, 100)), st.floats(0, 50))
def test_noised_histograms_become_counts(histogram: np.ndarray, noise: float) -> None:
    counts = consistent(histogram, noise=noise)
    assert (counts >= 0).all()
    metrics = metrics_from_histogram(histogram, noise=noise)
    values = [*metrics.auroc, *metrics.auprc, *metrics.brier, *metrics.ece]
    assert all(0 <= value <= 1 + 1e-9 for value in values if value is not None)
    for cells, total in zip(counts.reshape(4, 16), histogram.reshape(4, 16).sum(1), strict=True):
        assert cells.sum() == pytest.approx(max(total, 0.0), abs=1e-6) or cells.sum() == 0


@settings(deadline=None)
@given(arrays(np.float64, 16, elements=st.floats(-10, 10)))
def test_consistent_is_the_isotonic_fit_of_the_cumulative_counts(cells: np.ndarray) -> None:
    cells[5] += 200.0  # a total above zero
    cells[3] = -1.0
    total = cells.sum()
    expected = isotonic_regression(np.cumsum(cells)[:-1], y_min=0, y_max=total)
    found = np.cumsum(consistent(cells[None, None])[0, 0])
    assert found[:-1] == pytest.approx(expected, abs=1e-9)


def test_histogram_without_noise_is_left_as_it_is() -> None:
    histogram = score_histogram(*draw(1, 50))
    assert np.array_equal(consistent(histogram), histogram)


def test_noise_does_not_pull_the_auroc_towards_one_half() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 1)) < 0.3).astype(float)
    logits = rng.normal(1.5 * labels - 1, 1)
    histogram = score_histogram(logits, labels, np.ones_like(labels), bins=32)
    exact = metrics_from_histogram(histogram).auroc[0]
    noised = [
        metrics_from_histogram(histogram + rng.normal(0, 5, histogram.shape), noise=5).auroc[0]
        for _ in range(100)
    ]
    assert exact is not None
    assert np.mean([value for value in noised if value is not None]) == pytest.approx(
        exact, abs=0.015
    )


def test_class_lost_in_the_noise_counts_as_absent() -> None:
    histogram = np.zeros((1, 2, 32))
    histogram[0, 0, 4], histogram[0, 1, 9] = 500.0, 3.0
    assert metrics_from_histogram(histogram).auroc == (1.0,)
    assert metrics_from_histogram(histogram, noise=1.0).auroc == (None,)


def test_sigmoid_neither_overflows_nor_rounds_the_tail_away() -> None:
    assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]
    assert sigmoid(np.array([-8.0]))[0] == pytest.approx(1 / (1 + np.exp(8)), rel=1e-9)
