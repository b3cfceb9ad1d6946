"""Figures of classes against scikit-learn's, and what one patient can add to a release."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from medfusion.errors import FederationError
from medfusion.evaluation.multiclass_measures import MulticlassMeasures, log_odds, probabilities

NAMES = ("well", "ill", "worse")
MEASURES = MulticlassMeasures(NAMES)


def draw(seed, count=400):
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, count, p=(0.5, 0.3, 0.2))
    labels = np.eye(3, dtype=np.float32)[classes]
    logits = (labels * 1.5 + rng.normal(0, 1, (count, 3))).astype(np.float32)
    known = np.repeat((rng.random((count, 1)) < 0.8).astype(np.float32), 3, axis=1)
    return logits, labels, known


def test_probabilities_are_the_softmax_also_of_huge_logits():
    logits = draw(0)[0].astype(float)
    np.testing.assert_allclose(probabilities(logits), softmax(logits, axis=1), rtol=1e-9)
    told = softmax(logits, axis=1)
    np.testing.assert_allclose(log_odds(logits), np.log(told / (1 - told)), rtol=1e-9)
    assert np.isfinite(log_odds(np.array([[np.inf, -np.inf, 0.0], [3e38, 3e38, -3e38]]))).all()


def test_figures_of_summed_releases_are_those_of_the_pooled_predictions():
    logits, labels, known = draw(1)
    at = np.arange(len(logits)) % 3
    releases = [
        MEASURES.release(logits[at == k], labels[at == k], known[at == k], noised=False)
        for k in range(3)
    ]
    found = MEASURES.summary(np.sum(releases, axis=0))
    keep = known[:, 0] > 0
    true, told = labels[keep].argmax(1), logits[keep].argmax(1)
    assert found["confusion"] == confusion_matrix(true, told).tolist()
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, told))
    assert found["f1_macro"] == pytest.approx(f1_score(true, told, average="macro"))
    areas = [roc_auc_score(true == k, log_odds(logits)[keep, k]) for k in range(3)]
    assert list(found["auroc"].values()) == pytest.approx(areas, abs=0.003)  # bins of .06


def test_a_patient_adds_no_more_than_the_sensitivity_and_some_patient_all_of_it():
    logits, labels, known = draw(2, 60)
    for noised in (False, True):
        whole = MEASURES.release(logits, labels, known, noised=noised)
        assert whole.shape == MEASURES.release_shape(noised=noised)
        keep = np.arange(60)
        changes = [
            whole
            - MEASURES.release(*(a[keep != i] for a in (logits, labels, known)), noised=noised)
            for i in range(60)
        ]
        norms = [np.linalg.norm(change) for change in changes]
        assert max(norms) == pytest.approx(MEASURES.sensitivity)


def test_raw_figures_are_the_same_and_intervals_hold_them():
    logits, labels, known = draw(3)
    groups = {"fold": np.zeros(400, int), "site": np.zeros(400, int)}
    patients = np.arange(400)
    arms = np.stack([logits, -logits])[:, None]
    figures = MEASURES.figures(arms, labels, known, patients, groups=groups, resamples=200)
    exact = MEASURES.summary(MEASURES.release(logits, labels, known, noised=False))
    for key in ("balanced_accuracy", "f1_macro"):
        interval = figures[key].macro(0)
        assert interval.mean == pytest.approx(exact[key])
        assert interval.ci95[0] < interval.mean < interval.ci95[1]
        assert figures[key].macro(1).mean < interval.mean
    assert figures["auroc_macro"].macro(0).mean == pytest.approx(exact["auroc_macro"], abs=0.003)
    held_out = MEASURES.held_out(logits, labels, known, patients)
    assert held_out["balanced_accuracy"]["mean"] == pytest.approx(exact["balanced_accuracy"])
    assert held_out["labels"]["ill"]["unknown"] == int((known[:, 0] == 0).sum())


def test_resamples_of_recall_are_those_of_a_loop():
    logits, labels, known = draw(4, 30)
    from medfusion.evaluation.intervals import resampled_weights

    figures = MEASURES.figures(
        logits[None, None], labels, known, np.arange(30) // 2,
        groups={"fold": np.zeros(30, int), "site": np.zeros(30, int)}, resamples=20,
    )  # fmt: skip
    ((_, weights),) = resampled_weights(np.arange(30) // 2, resamples=20)
    for column in (0, 7, 20):
        rows = np.repeat(np.arange(30), weights[:, column].astype(int))
        rows = rows[known[rows, 0] > 0]
        true, told = labels[rows].argmax(1), logits[rows].argmax(1)
        recalls = [np.mean(told[true == k] == k) for k in range(3) if (true == k).any()]
        found = figures["balanced_accuracy"].values[column, 0]
        assert found[~np.isnan(found)] == pytest.approx(recalls)


def test_an_absent_class_has_no_recall_and_noise_hides_a_small_one():
    logits, labels, known = draw(5)
    known[labels[:, 2] > 0] = 0
    release = MEASURES.release(logits, labels, known, noised=True)
    found = MEASURES.summary(release)
    assert found["recall"]["worse"] is None
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([found["recall"]["well"], found["recall"]["ill"]])
    )
    hidden = MEASURES.summary(release, noise=100.0)
    assert hidden["balanced_accuracy"] is None
    assert hidden["auroc_macro"] is None


def test_nan_is_refused():
    logits, labels, known = draw(6, 10)
    logits[3, 1] = np.nan
    with pytest.raises(FederationError, match="diverged"):
        MEASURES.release(logits, labels, known, noised=False)
