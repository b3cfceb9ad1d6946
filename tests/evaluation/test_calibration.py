"""Calibration from summed histograms, against scikit-learn and numpy on the pooled raw scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.isotonic import IsotonicRegression, isotonic_regression

from medfusion.errors import ConfigError
from medfusion.evaluation.calibrated_figures import calibrated_figures, figures_of_histograms
from medfusion.evaluation.calibration import Calibration, calibrate
from medfusion.evaluation.metrics import counts_at_scores
from medfusion.evaluation.score_histograms import (
    BINS,
    LIMIT,
    bin_centres,
    bin_numbers,
    consistent,
    nearest_rising,
    score_histogram,
)

NAMES = ("ill", "dead")
WIDTH = 2 * LIMIT / BINS
GRID = np.linspace(-6, 6, 200)


def draw(seed: int, count: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overconfident logits, labels, known, [N, 2]."""
    rng = np.random.default_rng(seed)
    truth = rng.normal((-0.5, -1.5), 1.2, (count, 2))
    labels = (rng.random((count, 2)) < expit(truth)).astype(np.float64)
    return 2.5 * truth + 0.8, labels, (rng.random((count, 2)) < 0.8).astype(np.float64)


def summed(logits, labels, known, *, sites: int = 3, bins: int = BINS) -> np.ndarray:
    at = np.arange(len(logits)) % sites
    parts = [score_histogram(logits[at == k], labels[at == k], known[at == k], bins=bins)
             for k in range(sites)]  # fmt: skip
    return np.sum(parts, axis=0)


def fitted(counts, **changes) -> Calibration:
    options = {"method": "platt", "exclusive": False, "sensitivity": 0.9, "coverage": 0.9}
    return calibrate(counts, NAMES, **(options | changes))


def log_loss(parameters, logits, wanted) -> float:
    score = parameters[0] * logits + (parameters[1] if len(parameters) > 1 else 0.0)
    return -float((wanted * log_expit(score) + (1 - wanted) * log_expit(-score)).sum())


def test_platt_from_sites_is_that_of_the_pooled_scores():
    logits, labels, known = draw(0)
    found = fitted(summed(logits, labels, known))
    for column, name in enumerate(NAMES):
        keep = known[:, column] > 0
        z, y = logits[keep, column], labels[keep, column]
        wanted = np.where(y > 0, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
        inside = np.clip(z, -LIMIT, LIMIT)
        slope, intercept = minimize(log_loss, (1.0, 0.0), args=(inside, wanted)).x
        told = found.labels[name].probabilities(GRID)
        # Half a bin's width moves a score by at most slope * width / 2, a probability by a quarter.
        assert np.abs(told - expit(slope * GRID + intercept)).max() < slope * WIDTH / 8


def test_temperature_is_one_slope_for_all_labels():
    logits, labels, known = draw(1)
    found = fitted(summed(logits, labels, known), method="temperature")
    inside = np.clip(logits, -LIMIT, LIMIT)[known > 0]
    (slope,) = minimize(log_loss, (1.0,), args=(inside, labels[known > 0])).x
    calibrators = {found.labels[name].calibrator for name in NAMES}
    assert len(calibrators) == 1
    assert calibrators.pop().slope == pytest.approx(slope, rel=0.01)
    assert slope < 0.7  # the scores were overconfident


def test_isotonic_is_scikit_learns_at_the_bin_centres_and_near_that_of_raw_scores():
    logits, labels, known = draw(2)
    found = fitted(summed(logits, labels, known), method="isotonic")
    for column, name in enumerate(NAMES):
        keep = known[:, column] > 0
        z, y = logits[keep, column], labels[keep, column]
        least = 1 / (len(y) + 2)
        centres = bin_centres(BINS)[bin_numbers(z, BINS)]
        model = IsotonicRegression(out_of_bounds="clip").fit(centres, y)
        told = found.labels[name].probabilities(GRID)
        knots = np.unique(centres)
        expected = np.interp(GRID, knots, np.clip(model.predict(knots), least, 1 - least))
        np.testing.assert_allclose(told, expected, atol=1e-9)
        raw = IsotonicRegression(out_of_bounds="clip").fit(z, y)
        near = [raw.predict(np.clip(GRID + shift, -LIMIT, LIMIT)) for shift in (-WIDTH, WIDTH)]
        assert np.mean((told >= near[0] - 0.02) & (told <= near[1] + 0.02)) > 0.95


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 30))
def test_the_weighted_rising_fit_is_scikit_learns(seed, size):
    rng = np.random.default_rng(seed)
    values, weights = rng.random(size), rng.integers(1, 9, size).astype(float)
    expected = isotonic_regression(values, sample_weight=weights)
    np.testing.assert_allclose(nearest_rising(values, weights), expected, atol=1e-9)


def test_calibration_mends_what_is_overconfident():
    counts = summed(*draw(3))
    tested = summed(*draw(4))
    for method in ("temperature", "platt", "isotonic"):
        figures = figures_of_histograms(fitted(counts, method=method), tested)
        assert figures["ece_after"] < 0.6 * figures["ece_before"]
        assert figures["brier_after"] < figures["brier_before"]
    unchanged = figures_of_histograms(fitted(counts, method="none"), tested)
    assert unchanged["ece_after"] == unchanged["ece_before"]


@pytest.mark.parametrize("sensitivity", [0.5, 0.9, 0.99])
def test_the_operating_bin_holds_the_threshold_of_the_pooled_scores(sensitivity):
    logits, labels, known = draw(5)
    found = fitted(summed(logits, labels, known), sensitivity=sensitivity)
    for column, name in enumerate(NAMES):
        keep = (known[:, column] > 0) & (labels[:, column] > 0)
        z = np.sort(np.clip(logits[keep, column], -LIMIT, LIMIT))[::-1]
        threshold = z[int(np.ceil(sensitivity * len(z) - 1e-9)) - 1]
        edge = 2 * LIMIT * found.labels[name].operating_bin / BINS - LIMIT
        assert edge <= threshold < edge + WIDTH or threshold == LIMIT
        decided = found.read(logits).decisions[keep, column]
        assert decided.mean() >= sensitivity


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_are_the_split_conformal_ones_of_the_pooled_scores(coverage):
    logits, labels, known = draw(6)
    found = fitted(summed(logits, labels, known), coverage=coverage)
    for column, name in enumerate(NAMES):
        label = found.labels[name]
        for sign, truth, edge in (
            (1, 1, 2 * LIMIT * label.present_from / BINS - LIMIT),
            (-1, 0, -(2 * LIMIT * label.absent_below / BINS - LIMIT)),
        ):
            keep = (known[:, column] > 0) & (labels[:, column] == truth)
            z = np.sort(np.clip(sign * logits[keep, column], -LIMIT, LIMIT))
            left_out = len(z) - int(np.ceil((len(z) + 1) * coverage))
            assert edge <= z[left_out] < edge + WIDTH + 1e-9


def test_sets_hold_the_truth_of_new_patients_in_each_class():
    held, raw_size = [], []
    for seed in range(200):
        found = fitted(summed(*draw(seed, 150)))
        logits, labels, _ = draw(seed + 1000, 100)
        read = found.read(logits)
        in_set = np.where(labels > 0, read.present, read.absent)
        held.append([in_set[labels > 0].mean(), in_set[labels == 0].mean()])
        raw_size.append((read.present.astype(int) + read.absent).mean())
    assert (np.mean(held, axis=0) > 0.895).all()
    assert (np.mean(held, axis=0) < 0.94).all()
    assert np.mean(raw_size) < 1.6  # and not by holding everything


def test_noise_does_not_cost_coverage_in_an_unlucky_run_either():
    rng, held, bins = np.random.default_rng(0), [], 32
    for seed in range(100):
        exact = summed(*draw(seed, 300), bins=bins)
        counts = consistent(exact + rng.normal(0, 3, exact.shape), noise=3.0)
        logits, labels, _ = draw(seed + 1000, 200)
        read = fitted(counts, noise=3.0).read(logits)
        in_set = np.where(labels > 0, read.present, read.absent)
        held.append([in_set[:, 1][labels[:, 1] == truth].mean() for truth in (0, 1)])
    assert (np.mean(held, axis=0) > 0.9).all()
    # Without the margin one run in twenty covers less than three in four of the rarer class.
    assert (np.quantile(held, 0.05, axis=0) > 0.85).all()


def test_a_class_of_few_is_never_left_out_and_one_of_nobody_stays_uncalibrated():
    labels = np.repeat([[1.0, 0.0], [0.0, 0.0]], (8, 30), axis=0)
    logits = np.linspace(3, -3, 38)[:, None] * [1.0, 1.0]
    counts = summed(logits, labels, np.ones_like(labels))
    found = fitted(counts)
    assert found.labels["ill"].present_from == 0
    assert found.labels["ill"].absent_below < BINS
    dead = found.labels["dead"]
    assert (dead.calibrator, dead.operating_bin, dead.present_from) == (None, None, 0)
    np.testing.assert_allclose(dead.probabilities(GRID), expit(GRID))
    read = found.read(logits)
    assert read.present.all()
    np.testing.assert_array_equal(read.decisions[:, 1], logits[:, 1] >= 0)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_fewer_than_ten_of_a_class_are_not_fitted_to(method):
    for few, is_fitted in ((9, False), (10, True)):
        for positive in (0.0, 1.0):
            labels = np.repeat([[positive], [1.0 - positive]], (few, 40), axis=0)
            logits = np.random.default_rng(0).normal(labels, 1)
            counts = score_histogram(logits, labels, np.ones_like(labels))
            options = {"exclusive": False, "sensitivity": 0.9, "coverage": 0.9}
            found = calibrate(counts, ("ill",), method=method, **options).labels["ill"]
            assert (found.calibrator is not None) is is_fitted
            assert (found.operating_bin is not None) is (is_fitted or positive == 0)


def test_what_noise_may_have_made_is_not_fitted_to():
    counts = summed(*draw(13), bins=25)
    fewest = counts.sum(axis=-1)[0, 1]  # positives of the first label, fewer than negatives
    for share, is_fitted in ((0.99, True), (1.01, False)):
        noise = share * fewest / 50  # ten standard deviations on 25 bins
        label = fitted(counts, noise=noise).labels["ill"]
        assert (label.calibrator is not None) is is_fitted
        assert (label.operating_bin is not None) is is_fitted


@pytest.mark.parametrize(("count", "left_out"), [(8, None), (9, 0), (18, 0), (19, 1), (29, 2)])
def test_how_many_are_left_out_is_that_of_split_conformal(count, left_out):
    """ceil((n + 1) .9) of n scores, each in its own bin, stay in; above n: everything does."""
    logits = np.linspace(-3, 3, count)[:, None]
    counts = score_histogram(logits, np.ones_like(logits), np.ones_like(logits))
    options = {"method": "none", "exclusive": False, "sensitivity": 0.9, "coverage": 0.9}
    found = calibrate(counts, ("ill",), **options).labels["ill"].present_from
    expected = 0 if left_out is None else bin_numbers(logits[left_out, 0], BINS)
    assert found == expected


def test_scores_that_rank_the_wrong_way_become_the_mean():
    logits, labels, known = draw(7)
    found = fitted(summed(-logits, labels, known)).labels["ill"].calibrator
    assert found.slope == 0
    assert expit(found.intercept) == pytest.approx(labels[known[:, 0] > 0, 0].mean(), abs=0.01)


def test_classes_add_up_to_one_and_the_one_of_highest_score_is_told():
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 3, 600)
    labels = np.eye(3)[truth]
    logits = 3 * labels + rng.normal(0, 2, labels.shape) - 2
    counts = summed(logits, labels, np.ones_like(labels))
    options = {"method": "isotonic", "sensitivity": 0.9, "coverage": 0.9}
    found = calibrate(counts, ("a", "b", "c"), exclusive=True, **options)
    read = found.read(logits)
    np.testing.assert_allclose(read.probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(read.decisions.argmax(axis=1), logits.argmax(axis=1))
    assert (read.decisions.sum(axis=1) == 1).all()
    # Calibration put another class ahead here and there; the figures of decisions do not know.
    assert (read.probabilities.argmax(axis=1) != logits.argmax(axis=1)).any()
    figures = figures_of_histograms(found, counts)
    assert figures["coverage"] == pytest.approx(read.present[labels > 0].mean())
    assert figures["set_size"] == pytest.approx(read.present.sum(axis=1).mean())
    assert "sensitivity" not in figures["labels"]["a"]


def test_all_classes_are_calibrated_or_none():
    truth = np.repeat([0, 1, 2], (200, 200, 9))
    labels = np.eye(3)[truth]
    logits = labels + np.random.default_rng(14).normal(0, 1, labels.shape)
    counts = summed(logits, labels, np.ones_like(labels))
    options = {"method": "platt", "sensitivity": 0.9, "coverage": 0.9}
    told = {
        exclusive: [
            label.calibrator is not None
            for label in calibrate(counts, "abc", exclusive=exclusive, **options).labels.values()
        ]
        for exclusive in (False, True)
    }
    assert told == {False: [True, True, False], True: [False, False, False]}


def test_decisions_and_sets_have_the_same_figures_raw_and_binned():
    found = fitted(summed(*draw(9)))
    logits, labels, known = draw(10)
    binned = figures_of_histograms(found, summed(logits, labels, known))
    raw = calibrated_figures(found, *counts_at_scores(logits, labels, known))
    read = found.read(logits)
    for column, name in enumerate(NAMES):
        keep, y = known[:, column] > 0, labels[:, column]
        in_set = np.where(y > 0, read.present[:, column], read.absent[:, column])
        expected = {
            "coverage": in_set[keep].mean(),
            "sensitivity": read.decisions[keep & (y > 0), column].mean(),
            "specificity": (~read.decisions[keep & (y == 0), column]).mean(),
            "set_size": (read.present[keep, column].astype(int) + read.absent[keep, column]).mean(),
            "brier_after": ((read.probabilities[keep, column] - y[keep]) ** 2).mean(),
        }
        for key, value in expected.items():
            assert raw["labels"][name][key] == pytest.approx(value)
            assert binned["labels"][name][key] == pytest.approx(value, abs=2e-3)
        for key in ("coverage", "sensitivity", "specificity", "set_size"):
            assert binned["labels"][name][key] == pytest.approx(raw["labels"][name][key])
    assert binned["ece_after"] == pytest.approx(raw["ece_after"], abs=0.01)
    assert raw["coverage"] == pytest.approx(np.mean([raw["labels"][n]["coverage"] for n in NAMES]))


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic", "none"])
def test_the_file_reads_as_it_was_written(method):
    found = fitted(summed(*draw(11)), method=method)
    assert Calibration.parse(found.model_dump(mode="json"), where="x") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 8}, "expected bins up to 8"),
        ({"coverage": 1.0}, "coverage"),
        ({"schema": 2}, "schema"),
        ({"labels": {}}, "labels"),
    ],
)
def test_a_damaged_file_is_refused(change, message):
    data = fitted(summed(*draw(12))).model_dump(mode="json")
    with pytest.raises(ConfigError, match=message):
        Calibration.parse(data | change, where="calibration.json")
