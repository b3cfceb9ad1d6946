"""The baselines and figures of the real-data benchmark."""

from dataclasses import replace

import numpy as np
import pytest
from baselines import Baseline, FoldInputs, fold_scores
from real_sets_report import Scored, report
from sklearn.metrics import roc_auc_score
from tabular_cohort import write_ward

from medfusion.comparison.results import Truth
from medfusion.comparison.trials import deal_folds
from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST, TRAIN
from medfusion.evaluation.multilabel_measures import MultilabelMeasures

KINDS = ("logistic", "boosting")


@pytest.fixture
def pooled(tmp_path):
    write_ward(tmp_path, patients=150)
    (fold, _) = deal_folds([load_site_data(tmp_path / "sites" / "north")], 2)
    return fold.pooled


@pytest.mark.parametrize("kind", KINDS)
def test_baselines_find_the_signal_for_every_seed(pooled, kind):
    scores = fold_scores(Baseline(kind, ("tabular",)), FoldInputs(pooled), [0, 1])
    truth = pooled.part(TEST).labels[:, 0]
    assert scores.shape == (2, len(truth), 2)
    assert min(roc_auc_score(truth, one[:, 0]) for one in scores) > 0.9
    assert (kind == "logistic") == np.array_equal(scores[0], scores[1])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_fitted_on_other_test_studies(pooled, kind):
    baseline = Baseline(kind, ("tabular",))
    before = fold_scores(baseline, FoldInputs(pooled), [0])
    studies = pooled.studies
    features, labels = studies.features.copy(), studies.labels.copy()
    changed = np.flatnonzero(pooled.split == TEST)[1:]
    features[changed] *= 7
    labels[changed] = 1 - labels[changed]
    other = replace(pooled, studies=replace(studies, features=features, labels=labels))
    after = fold_scores(baseline, FoldInputs(other), [0])
    assert after[:, 0] == pytest.approx(before[:, 0])
    assert not np.allclose(after, before)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_labels_do_not_train_and_one_class_gives_one_score(pooled, kind):
    studies = pooled.studies
    labels = studies.labels.copy()
    train = np.flatnonzero(pooled.split == TRAIN)
    labels[train[labels[train, 0] == 0], 0] = np.nan
    other = replace(pooled, studies=replace(studies, labels=labels))
    scores = fold_scores(Baseline(kind, ("tabular",)), FoldInputs(other), [0])
    assert len(np.unique(scores[..., 0])) == 1
    assert scores[0, 0, 0] > 0
    assert len(np.unique(scores[..., 1])) > 1


def _truth(rng, count=60):
    labels = (rng.random((count, 1)) < 0.4).astype(np.float32)
    return Truth(
        measures=MultilabelMeasures(("ill",)),
        labels=labels,
        known=np.ones_like(labels),
        patients=np.arange(count).astype(str),
        sites=np.array(["a", "b"])[rng.integers(0, 2, count)],
        folds=np.repeat([0, 1], count // 2),
    )


def test_report_ranks_studies_of_a_fold_and_of_a_fold_and_site():
    rng = np.random.default_rng(0)
    truth = _truth(rng)
    plain = rng.normal(truth.labels, 1, (1, 60, 1))
    by_fold = plain + 9 * truth.folds[:, None]
    by_site = by_fold + 9 * (truth.sites == "a")[:, None]
    scored = [
        Scored(name, "baseline", "text", scores.astype(np.float32))
        for name, scores in (("plain", plain), ("by_fold", by_fold), ("by_site", by_site))
    ]
    plain, by_fold, by_site = report(scored, truth, resamples=20)["arms"]
    won = pairs = 0.0
    for fold in range(2):
        y, s = truth.labels[truth.folds == fold, 0], scored[0].scores[0, truth.folds == fold, 0]
        size = y.sum() * (1 - y).sum()
        won, pairs = won + size * roc_auc_score(y, s), pairs + size
    assert plain["auroc"]["ill"]["mean"] == pytest.approx(won / pairs)
    assert by_fold == plain | {"name": "by_fold"}
    assert by_site["auroc"] != plain["auroc"]
    assert by_site["auprc"] != plain["auprc"]
    for key in ("within_sites", "within_sites_macro", "per_site", "worst_site"):
        assert by_site[key] == plain[key]


def test_report_pairs_each_regime_with_the_best_baseline():
    rng = np.random.default_rng(1)
    truth = _truth(rng)

    def arm(name, kind, modalities, strength):
        logits = strength * truth.labels + rng.normal(0, 1, (2, 60, 1))
        return Scored(name, kind, modalities, logits.astype(np.float32))

    scored = [
        arm("pooled", "pooled", "image+text", 2),
        arm("federated", "federated", "image+text", 2),
        arm("image", "federated", "image", 1),
        arm("text", "federated", "text", 0),
        arm("weak", "baseline", "text", 0),
        arm("strong", "baseline", "image+text", 3),
    ]
    result = report(scored, truth, resamples=50)
    pairs = [(gap["a"], gap["b"]) for gap in result["differences"] if gap["figure"] == "auroc"]
    assert pairs == [
        ("pooled", "strong"),
        ("federated", "strong"),
        ("federated", "pooled"),
        ("federated", "image"),
    ]
    means = {one["name"]: one["auroc_macro"]["mean"] for one in result["arms"]}
    assert result["differences"][0]["mean"] == pytest.approx(means["pooled"] - means["strong"])
    for one in result["arms"]:
        assert one["worst_site"]["auroc_macro"] == min(one["per_site"].values())
