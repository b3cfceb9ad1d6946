import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tabular_cohort import write_ward

from medfusion.comparison.arms import Arm, plan_arms
from medfusion.comparison.results import (
    Truth,
    compare_json,
    compared_pairs,
    headline_of,
    worst_site,
)
from medfusion.errors import FederationError
from medfusion.evaluation.multilabel_measures import MultilabelMeasures

LABELS = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0]], np.float32)


@pytest.fixture
def arms(tmp_path: Path) -> tuple[Arm, ...]:
    return plan_arms(write_ward(tmp_path, patients=3))


@pytest.fixture
def truth() -> Truth:
    return Truth(
        measures=MultilabelMeasures(("ill", "dead")),
        labels=LABELS,
        known=np.ones_like(LABELS),
        patients=np.array(["a/1", "a/1", "a/2", "a/3", "b/1", "b/1"]),
        sites=np.array(list("aaaabb")),
        folds=np.zeros(6, int),
    )


def result(arms, scores, truth, seeds=1):
    return compare_json(arms, scores, truth, seeds=seeds, folds=5, resamples=200)


def test_figures_of_perfect_inverted_and_even_scores(arms, truth):
    scores = np.stack([LABELS, -LABELS, 0 * LABELS])[:, None]
    found = result(arms, scores, truth)
    means = [arm["auroc_macro"]["mean"] for arm in found["arms"]]
    assert means == [1.0, 0.0, 0.5]
    assert found["arms"][1]["auroc"] == {
        name: {"mean": 0.0, "ci95": [0.0, 0.0]} for name in truth.names
    }
    assert [(d["a"], d["b"], d["auroc_macro"]["mean"]) for d in found["differences"]] == [
        (1, 0, -1.0),
        (2, 0, -0.5),
        (2, 1, 0.5),
    ]
    # Positives of one score, with all else flagged before or with them: 4 in 6, and 2 in 6.
    precisions = [arm["auprc"]["ill"]["mean"] for arm in found["arms"]]
    assert precisions == pytest.approx([1.0, 4 / 6, 4 / 6])
    assert found["arms"][2]["auprc_macro"]["mean"] == pytest.approx((4 / 6 + 2 / 6) / 2)
    assert found["differences"][1]["auprc_macro"]["mean"] == pytest.approx(-0.5)
    assert (found["schema"], found["n_patients"], found["seeds"]) == (1, 4, 1)
    assert (found["folds"], found["resamples"]) == (5, 200)


def test_an_arm_is_the_mean_over_its_seeds(arms, truth):
    scores = np.stack([LABELS, -LABELS])[None]
    found = result(arms[:1], scores, truth, seeds=2)["arms"][0]
    assert found["auroc_macro"]["mean"] == 0.5
    assert found["per_site"]["a"] == {"auroc_macro": 0.5, "n_patients": 3}


def test_a_site_without_both_classes_has_no_figure(arms, truth):
    labels = LABELS.copy()
    labels[4:] = [[1, 0], [1, 0]]
    scores = LABELS[None, None]
    found = result(arms[:1], scores, dataclasses.replace(truth, labels=labels))["arms"][0]
    assert found["per_site"]["b"] == {"auroc_macro": None, "n_patients": 1}
    assert found["per_site"]["a"]["auroc_macro"] == 1.0


def test_unknown_labels_count_nowhere(arms, truth):
    known = np.ones_like(LABELS)
    known[1, 0] = 0  # scored above every positive, were it known
    scores = LABELS.copy()
    scores[1, 0] = 9
    found = result(arms[:1], scores[None, None], dataclasses.replace(truth, known=known))
    assert found["arms"][0]["auroc"]["ill"]["mean"] == 1.0
    assert found["arms"][0]["auprc"]["ill"]["mean"] == 1.0


def test_a_label_without_positives_is_null_and_leaves_the_macro(arms, truth):
    labels = LABELS.copy()
    labels[:, 1] = 0
    found = result(arms[:1], LABELS[None, None], dataclasses.replace(truth, labels=labels))
    for figure in ("auroc", "auprc"):
        assert found["arms"][0][figure]["dead"] == {"mean": None, "ci95": None}
        assert found["arms"][0][f"{figure}_macro"]["mean"] == 1.0


def test_differences_are_paired_by_resample(arms):
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 1)) < 0.5).astype(np.float32)
    one = (labels + rng.normal(0, 1, labels.shape)).astype(np.float32)
    truth = Truth(
        measures=MultilabelMeasures(("ill",)),
        labels=labels,
        known=np.ones_like(labels),
        patients=np.arange(80).astype(str),
        sites=np.repeat(["a", "b"], 40),
        folds=np.arange(80) % 2,
    )
    two = 3 * one + 100 * truth.folds[:, None]  # the same ranks within a fold
    found = result(arms[:2], np.stack([one, two])[:, None], truth)
    for figure in ("auroc_macro", "auroc_within_sites", "auprc_macro"):
        low, high = found["arms"][0][figure]["ci95"]
        assert high - low > 0.1
        assert found["differences"][0][figure] == {"mean": 0.0, "ci95": [0.0, 0.0]}


def test_figures_rank_within_folds_and_within_their_sites(arms):
    """One positive and one negative for each fold and site; every fold's level is its own."""
    folds, sites = np.repeat([0, 1], 4), np.tile(np.repeat(["a", "b"], 2), 2)
    labels = np.tile([1, 0], 4).astype(np.float32)[:, None]
    truth = Truth(
        measures=MultilabelMeasures(("ill",)),
        labels=labels,
        known=np.ones_like(labels),
        patients=np.char.add(sites, np.arange(8).astype(str)),
        sites=sites,
        folds=folds,
    )
    # Fold 0, site a: 2 over 1, site b: 4 over 3; fold 1 as fold 0 but site b inverted, and lower.
    scores = np.array([2, 1, 4, 3, -18, -19, -17, -16], np.float32)[None, None, :, None]
    found = result(arms[:1], scores, truth)["arms"][0]
    # Fold 0: 2 > 1, 4 > 1, 4 > 3, not 2 > 3. Fold 1: -18 and -17 > -19 only.
    assert found["auroc_macro"]["mean"] == pytest.approx(5 / 8)
    assert found["auroc"]["ill"] == found["auroc_macro"]
    assert found["auroc_within_sites"]["mean"] == pytest.approx(3 / 4)
    # Precision at each positive: 1 and 2/3 in fold 0; 1/2 and 2/3 in fold 1.
    assert found["auprc_macro"]["mean"] == pytest.approx((1 + 2 / 3 + 1 / 2 + 2 / 3) / 4)
    assert {site: one["auroc_macro"] for site, one in found["per_site"].items()} == {
        "a": 1.0,
        "b": 0.5,
    }
    assert found["worst_site"] == {"site": "b", "auroc_macro": 0.5}
    assert headline_of(scores[0], truth) == found["auroc_macro"]["mean"]


def test_nan_scores_are_refused(truth):
    scores = LABELS[None].copy()
    scores[0, 2, 1] = np.nan
    with pytest.raises(FederationError, match="gave NaN"):
        headline_of(scores, truth)


def test_without_a_figure_there_is_no_worst_site():
    assert worst_site({"a": None, "b": None}) is None
    assert worst_site({"a": None, "c": 0.7, "b": 0.7}) == {"site": "c", "auroc_macro": 0.7}


def test_many_arms_are_compared_where_they_differ_in_one_thing(tmp_path):
    arms = plan_arms(
        write_ward(tmp_path / "many", patients=3),
        regimes=["local", "federated"],
        vary=["run.rounds=1,2,3", "selection.top_n=4,8"],
    )
    pairs = compared_pairs(arms)
    assert len(arms) == 12
    assert {(i, 0) for i in range(1, 12)} <= set(pairs)
    assert (3, 2) in pairs  # the same settings
    assert (10, 2) in pairs  # the same regime
    assert (11, 2) not in pairs
    assert all(a > b for a, b in pairs)
    assert len(set(pairs)) == len(pairs)
    assert len(compared_pairs(arms[:6])) == 15
