"""Intervals: coverage, edges, and the bootstrap against a plain loop."""

import time

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medfusion.evaluation.intervals import Interval, auroc_interval, patient_bootstrap


def counts_of(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(scores[truth == outcome], minlength=64) for outcome in (0, 1)])


def coverage(*, patients: int, shift: float, noise: float = 0.0) -> float:
    """How often the interval holds the area of two normals ``shift`` apart."""
    rng = np.random.default_rng(0)
    area = norm.cdf(shift / np.sqrt(2))
    held = 0
    for _ in range(400):
        truth = (np.arange(patients) < patients // 3).astype(int)
        scores = ((rng.normal(shift * truth, 1) + 4) * 7).astype(int).clip(0, 63)
        counts = counts_of(scores, truth) + rng.normal(0, noise, (2, 64))
        interval = auroc_interval(counts, noise=noise)
        assert interval.ci95 is not None
        held += interval.ci95[0] <= area <= interval.ci95[1]
    return held / 400


@pytest.mark.parametrize(("patients", "shift"), [(30, 0.5), (60, 2.0), (300, 1.0)])
def test_interval_holds_the_true_area_95_times_in_100(patients: int, shift: float) -> None:
    assert 0.92 <= coverage(patients=patients, shift=shift) <= 0.985


def test_interval_counts_the_noise() -> None:
    assert 0.91 <= coverage(patients=600, shift=1.0, noise=3.0) <= 0.985


def test_interval_matches_a_hand_computation() -> None:
    """10 + 10 patients with area 0.8: both ends solve Newcombe's equation."""
    counts = np.array([[8.0, 2.0], [2.0, 8.0]])
    interval = auroc_interval(counts)
    assert interval.mean == pytest.approx(0.8)
    assert interval.ci95 is not None
    for end in interval.ci95:
        spread = (1 - end) / (2 - end) + end / (1 + end)
        variance = end * (1 - end) * (1 + 9 * spread) / 100
        assert abs(end - 0.8) == pytest.approx(1.96 * np.sqrt(variance), abs=1e-4)


def test_perfect_separation_keeps_an_interval_with_a_width() -> None:
    interval = auroc_interval(np.array([[10.0, 0.0], [0.0, 10.0]]))
    assert interval.mean == 1.0
    assert interval.ci95 is not None
    assert interval.ci95[0] < 0.9
    assert interval.ci95[1] == 1.0


def test_absent_class_has_no_interval() -> None:
    undefined = auroc_interval(np.array([[5.0, 1.0], [0.0, 0.0]]))
    assert undefined == Interval(None, None)
    assert undefined.to_json() == {"mean": None, "ci95": None}


def draw(seed: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, patients, 2 * patients)
    labels = (rng.random((2 * patients, 2)) < (0.4, 0.2)).astype(float)
    known = (rng.random(labels.shape) < 0.8).astype(float)
    scores = rng.normal(labels, 1.0, (2, *labels.shape)).round(1)
    return scores, labels, known, owner


def test_bootstrap_equals_a_plain_loop_over_the_same_resamples() -> None:
    scores, labels, known, owner = draw(0, 15)
    result = patient_bootstrap(scores, labels, known, owner, resamples=30, seed=5)
    names, codes = np.unique(owner, return_inverse=True)
    count = len(names)
    drawn = np.random.default_rng(5).multinomial(count, np.full(count, 1 / count), size=31)
    drawn[0] = 1
    for row, times in enumerate(drawn):
        studies = np.repeat(np.arange(len(owner)), times[codes])
        for arm in range(2):
            for label in range(2):
                kept = studies[known[studies, label] > 0]
                truth = labels[kept, label]
                if len(np.unique(truth)) < 2:
                    assert np.isnan(result.areas[row, arm, label])
                    continue
                expected = roc_auc_score(truth, scores[arm, kept, label])
                assert result.areas[row, arm, label] == pytest.approx(expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(1, 20)
    whole = patient_bootstrap(*data, resamples=50)
    monkeypatch.setattr("medfusion.evaluation.intervals._CELLS_AT_ONCE", 7 * 40)
    assert np.array_equal(patient_bootstrap(*data, resamples=50).areas, whole.areas)


def test_differences_are_paired() -> None:
    """Two arms with equal ranks differ by exactly nothing, in every resample."""
    scores, labels, known, owner = draw(2, 60)
    arms = np.stack([scores[0], 3 * scores[0] + 1, scores[1]])
    result = patient_bootstrap(arms, labels, known, owner, resamples=200)
    assert result.difference(0, 1) == Interval(0.0, (0.0, 0.0))
    gap, back = result.difference(0, 2), result.difference(2, 0)
    assert gap.mean is not None
    assert gap.ci95 is not None
    assert back.ci95 is not None
    assert gap.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    one, other = result.macro(0).mean, result.macro(2).mean
    assert one is not None
    assert other is not None
    assert gap.mean == pytest.approx(one - other)


def test_seeds_are_averaged_within_each_resample() -> None:
    scores, labels, known, owner = draw(3, 40)
    both = patient_bootstrap(scores[None], labels, known, owner, resamples=20)
    apart = patient_bootstrap(scores, labels, known, owner, resamples=20)
    assert both.areas[:, 0] == pytest.approx(apart.areas.mean(axis=1), nan_ok=True)


def test_label_without_positives_and_empty_cohort_are_null() -> None:
    scores, labels, known, owner = draw(4, 30)
    labels[:, 1] = 0
    result = patient_bootstrap(scores, labels, known, owner, resamples=50)
    assert result.auroc(0, 1) == Interval(None, None)
    assert result.macro(0) == result.auroc(0, 0)
    empty = patient_bootstrap(scores[:, :0], labels[:0], known[:0], owner[:0], resamples=5)
    assert empty.macro(1) == Interval(None, None)


def test_a_thousand_resamples_take_no_time() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 5)) < 0.3).astype(float)
    start = time.perf_counter()
    patient_bootstrap(rng.random((2, 300, 5)), labels, np.ones((300, 5)), np.arange(300))
    assert time.perf_counter() - start < 3
