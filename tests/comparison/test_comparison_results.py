import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tabular_cohort import write_ward

from medfusion.comparison.arms import Arm, plan_arms
from medfusion.comparison.results import Truth, compare_json, compared_pairs

LABELS = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0]], np.float32)


@pytest.fixture
def arms(tmp_path: Path) -> tuple[Arm, ...]:
    return plan_arms(write_ward(tmp_path, patients=3))


@pytest.fixture
def truth() -> Truth:
    return Truth(
        names=("ill", "dead"),
        labels=LABELS,
        known=np.ones_like(LABELS),
        patients=np.array(["a/1", "a/1", "a/2", "a/3", "b/1", "b/1"]),
        sites=np.array(list("aaaabb")),
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


def test_a_label_without_positives_is_null_and_leaves_the_macro(arms, truth):
    labels = LABELS.copy()
    labels[:, 1] = 0
    found = result(arms[:1], LABELS[None, None], dataclasses.replace(truth, labels=labels))
    assert found["arms"][0]["auroc"]["dead"] == {"mean": None, "ci95": None}
    assert found["arms"][0]["auroc_macro"]["mean"] == 1.0


def test_differences_are_paired_by_resample(arms):
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 1)) < 0.5).astype(np.float32)
    one = (labels + rng.normal(0, 1, labels.shape)).astype(np.float32)
    truth = Truth(
        ("ill",), labels, np.ones_like(labels), np.arange(80).astype(str), np.full(80, "a")
    )
    found = result(arms[:2], np.stack([one, 3 * one + 1])[:, None], truth)  # the same ranks
    low, high = found["arms"][0]["auroc_macro"]["ci95"]
    assert high - low > 0.1
    assert found["differences"][0]["auroc_macro"] == {"mean": 0.0, "ci95": [0.0, 0.0]}


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
