"""Errors of a predicted number against scikit-learn's, and what one patient can add."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from medfusion.errors import FederationError
from medfusion.evaluation.regression_measures import RegressionMeasures

LOW, HIGH = 18.0, 98.0
MEASURES = RegressionMeasures(("age",), LOW, HIGH, "year")


def draw(seed, count=300):
    rng = np.random.default_rng(seed)
    ages = rng.uniform(LOW, HIGH, (count, 1)).astype(np.float32)
    outputs = (ages - 58) / 40 + rng.normal(0, 0.3, (count, 1)).astype(np.float32)
    known = (rng.random((count, 1)) < 0.8).astype(np.float32)
    return outputs.astype(np.float32), ages, known


def test_an_output_is_a_share_of_the_range_and_stays_in_it():
    assert MEASURES.predictions(np.array([-1.0, 0.0, 1.0, 7.0])).tolist() == [18, 58, 98, 98]


def test_figures_of_summed_releases_are_those_of_the_pooled_predictions():
    outputs, ages, known = draw(0)
    at = np.arange(300) % 3
    total = sum(
        MEASURES.release(outputs[at == k], ages[at == k], known[at == k], noised=False)
        for k in range(3)
    )
    found = MEASURES.summary(total)
    keep = known[:, 0] > 0
    true, told = ages[keep, 0], MEASURES.predictions(outputs)[keep, 0]
    assert found["mae"] == pytest.approx(mean_absolute_error(true, told))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(true, told))
    assert found["r2"] == pytest.approx(r2_score(true, told))
    assert found["auroc_macro"] is None
    assert found["auroc"] == {}


@given(
    age=st.floats(LOW, HIGH, width=32),
    output=st.floats(-(2.0**100), 2.0**100, width=32),
    known=st.booleans(),
)
def test_a_patient_adds_no_more_than_the_sensitivity(age, output, known):
    one = MEASURES.release(
        np.array([[output]]), np.array([[age]]), np.array([[float(known)]]), noised=True
    )
    assert one.shape == MEASURES.release_shape(noised=True)
    assert np.linalg.norm(one) <= MEASURES.sensitivity + 1e-12
    assert one.any() == known


def test_the_sensitivity_is_reached_and_a_target_beyond_the_range_cannot_pass_it():
    for age in (LOW, LOW - 1000):
        one = MEASURES.release(np.ones((1, 1)), np.array([[age]]), np.ones((1, 1)), noised=True)
        assert np.linalg.norm(one) == pytest.approx(MEASURES.sensitivity)


def test_intervals_from_patients_and_from_sums_agree():
    outputs, ages, known = draw(1)
    held_out = MEASURES.held_out(outputs, ages, known, np.arange(300))
    release = MEASURES.release(outputs, ages, known, noised=False)
    interval = MEASURES.mae_interval(release)
    exact = MEASURES.summary(release)
    for key in ("mae", "rmse", "r2"):
        assert held_out[key]["mean"] == pytest.approx(exact[key])
    assert interval.ci95 == pytest.approx(held_out["mae"]["ci95"], abs=0.25)
    assert held_out["known"] == int(known.sum())


def test_arms_are_means_over_seeds_and_paired():
    outputs, ages, known = draw(2)
    arms = np.stack([np.stack([outputs, outputs]), np.stack([outputs, outputs + 0.5])])
    figures = MEASURES.figures(arms, ages, known, np.arange(300), groups={}, resamples=100)
    alone = MEASURES.figures(
        (outputs + 0.5)[None, None], ages, known, np.arange(300), groups={}, resamples=100
    )
    first, second = figures["mae"].macro(0).mean, alone["mae"].macro(0).mean
    assert figures["mae"].macro(1).mean == pytest.approx((first + second) / 2)
    low, high = figures["mae"].difference(1, 0).ci95
    assert 0 < low < high


def test_what_noise_hides_is_null():
    outputs, ages, known = draw(3, 20)
    release = MEASURES.release(outputs, ages, known, noised=True)
    assert MEASURES.summary(release, noise=30.0)["mae"] is None
    assert MEASURES.mae_interval(release, noise=30.0).mean is None
    assert MEASURES.summary(np.zeros((1, 5)))["mae"] is None
    wider = MEASURES.mae_interval(release, noise=2.0).ci95
    assert wider[1] > MEASURES.mae_interval(release).ci95[1]


def test_one_age_has_no_r2_and_nan_is_refused():
    outputs, ages, known = draw(4, 10)
    ages[:] = 50
    known[:] = 1
    assert MEASURES.summary(MEASURES.release(outputs, ages, known, noised=False))["r2"] is None
    outputs[2] = np.nan
    with pytest.raises(FederationError, match="diverged"):
        MEASURES.release(outputs, ages, known, noised=False)
