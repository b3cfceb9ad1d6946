"""Sensitivity at fixed specificity and its twin, against scikit-learn's ROC curve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from medfusion.evaluation.operating_points import NAMES, fixed_rates, operating_points


def reference(scores, positive, fixed=0.9):
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    specificity = 1 - fpr
    return tpr[specificity >= fixed - 1e-9].max(), specificity[tpr >= fixed - 1e-9].max()


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({truth for _, truth in rows}) == 2
    )
)
def test_the_rates_are_those_of_the_roc_curve(rows):
    scores, positive = np.array(rows).T
    found = operating_points(
        scores[:, None].astype(float), positive[:, None], np.ones((len(rows), 1)),
        np.arange(len(rows)), resamples=0,
    )  # fmt: skip
    expected = reference(scores, positive)
    for name, value in zip(NAMES, expected, strict=True):
        assert found[name].itself(0) == pytest.approx(value)


def test_a_tie_is_flagged_whole():
    # Nine negatives below; one negative and both positives share the highest score.
    counts = np.array([[9.0, 1.0], [0.0, 2.0]])
    assert fixed_rates(counts).tolist() == [1.0, 0.9]
    counts = np.array([[8.0, 2.0], [0.0, 2.0]])
    assert fixed_rates(counts).tolist() == [0.0, 0.8]


def test_resamples_of_patients_are_those_of_studies_drawn_again():
    """Each resample is the figure of its studies, repeated as often as their patient was drawn."""
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(30), 2)
    labels = (rng.random((60, 2)) < 0.5).astype(float)
    logits = rng.normal(labels, 1.0)
    known = (rng.random((60, 2)) < 0.9).astype(float)
    found = operating_points(logits, labels, known, patients, resamples=20)
    drawn = np.random.default_rng(0).multinomial(size=21, n=30, pvals=np.full(30, 1 / 30))
    for number in (1, 7, 20):
        again = np.repeat(np.arange(60), drawn[number][patients])
        for label in (0, 1):
            chosen = again[known[again, label] > 0]
            expected = reference(logits[chosen, label], labels[chosen, label])
            for name, value in zip(NAMES, expected, strict=True):
                assert found[name].values[number, 0, label] == pytest.approx(value)


def test_nothing_is_told_of_a_label_of_one_class():
    counts = np.array([[3.0, 2.0], [0.0, 0.0]])
    assert np.isnan(fixed_rates(counts)).all()
    assert np.isnan(fixed_rates(counts[::-1])).all()
