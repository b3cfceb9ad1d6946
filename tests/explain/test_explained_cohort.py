import numpy as np
import pytest
from scipy.stats import permutation_test

from medfusion.explain.cohort import by_feature, contrast, importance


def test_means_are_of_absolute_values_and_come_in_order():
    values = np.array([[[1.0, -3.0, 0.0]], [[-1.0, 1.0, 0.5]]])
    found = importance(values, np.array(["a", "b"]), min_patients=2)
    assert found.mean.tolist() == [[1.0, 2.0, 0.25]]
    assert found.order().tolist() == [1, 0, 2]


def test_a_patient_s_studies_are_drawn_together():
    """Two patients of ten studies each: a resample has one of them, or both."""
    values = np.repeat([0.0, 1.0], 10)[:, None, None]
    found = importance(values, np.repeat(["a", "b"], 10), min_patients=2)
    assert (found.low.item(), found.mean.item(), found.high.item()) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("least", [3, 10])
def test_of_too_few_patients_nothing_is_said(least):
    values = np.ones((2 * least, 1, 1))
    few = np.arange(2 * least) % (least - 1)
    assert importance(values, few, min_patients=least) is None
    assert importance(values, np.arange(2 * least) % least, min_patients=least) is not None


def test_a_contrast_is_that_of_a_permutation_test():
    rng = np.random.default_rng(1)
    has = np.arange(30) < 12
    values = rng.normal(size=30) + 1.5 * has
    ones = np.ones((30, 1))
    found = contrast(
        values[:, None, None], has[:, None], ones, np.arange(30), min_patients=5, permutations=4000
    )
    reference = permutation_test(
        (values[has], values[~has]), lambda x, y: x.mean() - y.mean(), n_resamples=4000, rng=2
    )
    assert found.difference.item() == pytest.approx(reference.statistic)
    expected = np.percentile(reference.null_distribution, [2.5, 97.5])
    assert [found.low.item(), found.high.item()] == pytest.approx(expected, abs=0.08)
    assert found.difference.item() > found.high.item()


def test_a_contrast_is_of_patients_and_of_what_is_known():
    values = np.array([2.0, 4.0, 1.0, 100.0, 0.0])[:, None, None]
    has = np.array([1.0, 0.0, 0.0, 1.0, 0.0])[:, None]
    known = np.array([1.0, 1.0, 1.0, 0.0, 1.0])[:, None]
    patients = np.array(["a", "a", "b", "b", "c"])
    found = contrast(values, has, known, patients, min_patients=1)
    assert found.difference.item() == pytest.approx((2 + 4) / 2 - (1 + 0) / 2)
    few = contrast(values, has, known, patients, min_patients=2)
    assert np.isnan([few.difference, few.low, few.high]).all()


def test_columns_add_up_to_their_features():
    values = np.arange(10.0).reshape(2, 5)
    added = by_feature(values, np.array([0, 1, 1, 1, 2]))
    assert added.tolist() == [[0, 6, 4], [5, 21, 9]]
