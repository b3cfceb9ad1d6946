"""Intervals: coverage, edges, and the bootstrap against a plain loop."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from medfusion.evaluation.intervals import Interval, auroc_interval, patient_bootstrap
from medfusion.evaluation.metrics import metrics_from_logits

SKLEARN = (roc_auc_score, average_precision_score)


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
    """Studies repeated as often as they were drawn, ties among them, judged by scikit-learn."""
    scores, labels, known, owner = draw(0, 15)
    assert len(np.unique(scores[0, :, 0])) < len(owner)
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
                found = [f.values[row, arm, label] for f in (result.auroc, result.auprc)]
                if len(np.unique(truth)) < 2:
                    assert np.isnan(found).all()
                    continue
                for value, figure in zip(found, SKLEARN, strict=True):
                    assert value == pytest.approx(figure(truth, scores[arm, kept, label]))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(1, 20)
    whole = patient_bootstrap(*data, resamples=50)
    monkeypatch.setattr("medfusion.evaluation.intervals._CELLS_AT_ONCE", 7 * 40)
    pieces = patient_bootstrap(*data, resamples=50)
    assert np.array_equal(pieces.auroc.values, whole.auroc.values, equal_nan=True)
    assert np.array_equal(pieces.auprc.values, whole.auprc.values, equal_nan=True)


def pair_by_pair(scores, labels, known, times, groups) -> tuple[float, float]:
    """AUROC and AUPRC by definition, each study standing for ``times`` of itself."""
    won = pairs = gained = positives = 0.0
    for group in np.unique(groups):
        here = np.flatnonzero((groups == group) & (known > 0) & (times > 0))
        ill, well = here[labels[here] > 0], here[labels[here] == 0]
        for i in ill:
            for j in well:
                pairs += times[i] * times[j]
                won += (
                    times[i]
                    * times[j]
                    * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
                )
            if len(well):
                flagged = here[scores[here] >= scores[i]]
                positives += times[i]
                gained += times[i] * times[flagged] @ labels[flagged] / times[flagged].sum()
    return (won / pairs, gained / positives) if pairs else (np.nan, np.nan)


@pytest.mark.parametrize("seed", range(4))
def test_groups_equal_a_loop_over_pairs_in_the_same_resamples(seed: int) -> None:
    """Ties, unknown labels, and groups that lack a class in some resamples or in all."""
    scores, labels, known, owner = draw(seed, 12)
    groups = np.random.default_rng(seed).integers(0, 4, len(owner))  # splits patients, too
    labels[groups == 3, 0] = 1
    result = patient_bootstrap(scores, labels, known, owner, groups=groups, resamples=30, seed=5)
    names, codes = np.unique(owner, return_inverse=True)
    drawn = np.random.default_rng(5).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=31
    )
    drawn[0] = 1
    for row, times in enumerate(drawn[:, codes].astype(float)):
        for arm in range(2):
            for label in range(2):
                expected = pair_by_pair(
                    scores[arm, :, label], labels[:, label], known[:, label], times, groups
                )
                found = [f.values[row, arm, label] for f in (result.auroc, result.auprc)]
                assert found == pytest.approx(expected, nan_ok=True)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """Scores [1, N, 1] with ties, labels, known [N, 1], patients and groups [N]."""
    count = draw(st.integers(2, 25))

    def column(low: int, high: int) -> np.ndarray:
        cells = st.lists(st.integers(low, high), min_size=count, max_size=count)
        return np.array(draw(cells))

    return (
        column(-3, 3)[None, :, None].astype(np.float32),
        column(0, 1)[:, None],
        np.minimum(column(0, 3), 1)[:, None],  # a quarter unknown
        column(0, 9),
        column(0, 3),
    )


def values_of(data: tuple[np.ndarray, ...], groups: np.ndarray | None) -> np.ndarray:
    result = patient_bootstrap(*data, groups=groups, resamples=8)
    return np.stack([result.auroc.values, result.auprc.values])


@settings(max_examples=60, deadline=None)
@given(grouped())
def test_one_group_is_no_group(data: tuple[np.ndarray, ...]) -> None:
    *rest, groups = data
    one = np.full(len(groups), "all")
    np.testing.assert_array_equal(values_of(rest, None), values_of(rest, one))


@settings(max_examples=60, deadline=None)
@given(grouped(), st.integers(-20, 20))
def test_shifting_the_scores_of_a_group_changes_nothing(
    data: tuple[np.ndarray, ...], by: int
) -> None:
    scores, *rest, groups = data
    shifted = scores + by * (groups == groups[0])[:, None]
    np.testing.assert_array_equal(
        values_of((scores, *rest), groups), values_of((shifted, *rest), groups)
    )


def test_groups_of_one_class_have_no_figure() -> None:
    labels = np.repeat([0.0, 1.0], 10)[:, None]
    scores, known, owner = labels[None], np.ones_like(labels), np.arange(20)
    groups = np.where(owner < 10, "well", "ill")
    result = patient_bootstrap(scores, labels, known, owner, groups=groups, resamples=20)
    assert np.isnan(result.auroc.values).all()
    assert np.isnan(result.auprc.values).all()
    groups[9] = "ill"  # the only pairs: ten positives with this study
    result = patient_bootstrap(scores, labels, known, owner, groups=groups, resamples=200)
    assert result.auroc.label(0, 0) == Interval(1.0, (1.0, 1.0))
    assert 0.2 < np.isnan(result.auroc.values).mean() < 0.6  # the share without it is 1/e


def test_folds_whose_models_differ_in_level_do_not_hide_what_each_can_tell() -> None:
    """Each fold is scored lower the more positives it has, as by a model that saw the rest."""
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 100)
    labels = (rng.random((200, 1)) < np.where(groups == 0, 0.7, 0.3)[:, None]).astype(float)
    scores = rng.normal(labels, 1.0) + 3 * groups[:, None]
    data = (scores[None], labels, np.ones_like(labels), np.arange(200))
    expected = norm.cdf(1 / np.sqrt(2))
    together = patient_bootstrap(*data, resamples=200).auroc.label(0, 0)
    apart = patient_bootstrap(*data, groups=groups, resamples=200).auroc.label(0, 0)
    assert together.mean is not None
    assert together.mean < 0.5
    assert apart.ci95 is not None
    assert apart.ci95[0] < expected < apart.ci95[1]


def test_differences_within_groups_are_paired() -> None:
    """Two arms with equal ranks in each group differ by nothing, though not in their levels."""
    scores, labels, known, owner = draw(8, 60)
    groups = np.arange(len(owner)) % 3
    arms = np.stack([scores[0], 2 * scores[0] + 100 * groups[:, None]])
    apart = patient_bootstrap(arms, labels, known, owner, groups=groups, resamples=100)
    low, high = apart.auroc.macro(0).ci95 or (0.0, 0.0)
    assert high - low > 0.05
    assert apart.auroc.difference(0, 1) == Interval(0.0, (0.0, 0.0))
    assert apart.auprc.difference(0, 1) == Interval(0.0, (0.0, 0.0))
    together = patient_bootstrap(arms, labels, known, owner, resamples=100)
    assert together.auroc.difference(0, 1) != Interval(0.0, (0.0, 0.0))


def test_differences_are_paired() -> None:
    """Two arms with equal ranks differ by exactly nothing, in every resample."""
    scores, labels, known, owner = draw(2, 60)
    arms = np.stack([scores[0], 3 * scores[0] + 1, scores[1]])
    result = patient_bootstrap(arms, labels, known, owner, resamples=200)
    assert result.auroc.difference(0, 1) == Interval(0.0, (0.0, 0.0))
    assert result.auprc.difference(0, 1) == Interval(0.0, (0.0, 0.0))
    gap, back = result.auroc.difference(0, 2), result.auroc.difference(2, 0)
    assert gap.mean is not None
    assert gap.ci95 is not None
    assert back.ci95 is not None
    assert gap.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    one, other = result.auroc.macro(0).mean, result.auroc.macro(2).mean
    assert one is not None
    assert other is not None
    assert gap.mean == pytest.approx(one - other)


def test_seeds_are_averaged_within_each_resample() -> None:
    scores, labels, known, owner = draw(3, 40)
    both = patient_bootstrap(scores[None], labels, known, owner, resamples=20)
    apart = patient_bootstrap(scores, labels, known, owner, resamples=20)
    for one, all_of in ((both.auroc, apart.auroc), (both.auprc, apart.auprc)):
        assert one.values[:, 0] == pytest.approx(all_of.values.mean(axis=1), nan_ok=True)


def test_label_without_positives_and_empty_cohort_are_null() -> None:
    scores, labels, known, owner = draw(4, 30)
    labels[:, 1] = 0
    result = patient_bootstrap(scores, labels, known, owner, resamples=50)
    assert result.auroc.label(0, 1) == Interval(None, None)
    assert result.auroc.macro(0) == result.auroc.label(0, 0)
    assert result.auprc.macro(0) == result.auprc.label(0, 0) != Interval(None, None)
    empty = patient_bootstrap(scores[:, :0], labels[:0], known[:0], owner[:0], resamples=5)
    assert empty.auroc.macro(1) == Interval(None, None)


def test_cohort_figures_are_those_of_the_metrics() -> None:
    """The histograms of a run and the bootstrap of a comparison mean the same by AUPRC."""
    scores, labels, known, owner = draw(6, 50)
    result = patient_bootstrap(scores, labels, known, owner, resamples=5)
    metrics = metrics_from_logits(scores[0], labels, known)
    assert result.auroc.macro(0).mean == pytest.approx(metrics.auroc_macro)
    assert result.auprc.macro(0).mean == pytest.approx(metrics.auprc_macro)


def test_a_thousand_resamples_take_no_time() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 5)) < 0.3).astype(float)
    start = time.perf_counter()
    patient_bootstrap(rng.random((2, 300, 5)), labels, np.ones((300, 5)), np.arange(300))
    assert time.perf_counter() - start < 3


def test_many_arms_seeds_and_groups_take_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((313, 5)) < 0.2).astype(float)
    start = time.process_time()
    patient_bootstrap(
        rng.random((12, 5, 313, 5)),
        labels,
        np.ones(labels.shape),
        rng.integers(0, 220, 313),
        groups=rng.integers(0, 25, 313),  # five folds of five sites
    )
    assert time.process_time() - start < 10
