"""Each site's own model at every site, against scikit-learn on the scores themselves."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tabular_cohort import write_ward
from test_comparison import FakeRunner, plan, run, sites_of

from medfusion.comparison.trials import finish
from medfusion.data.split import TEST
from medfusion.models.saved import load_model
from medfusion.scoring import score_part

SITES = ("north", "south")


def area(trial, site, folder, tmp_path):
    """Return the mean over labels of the AUROC of a trial's model at one site."""
    saved = load_model(folder / "runs" / trial.name / "model")
    scores = score_part(saved, site, TEST, cache=tmp_path / "cache")
    return np.mean(
        [
            roc_auc_score(scores.labels[keep, label], scores.logits[keep, label])
            for label in (0, 1)
            for keep in [scores.known[:, label] > 0]
        ]
    )


def test_each_model_is_tested_at_each_site(tmp_path):
    config = write_ward(tmp_path / "ward")
    comparison = plan(config, regimes=["local", "federated"])
    out = tmp_path / "out"
    result = run(comparison, FakeRunner(), out)
    local, federated = (arm["cross_site"] for arm in result["arms"])
    ((trials,),) = (comparison.trials[0],)
    sites = {site.name: site for site in sites_of(config)}
    for trial in trials:
        home = trial.sites[0].name
        for name, site in sites.items():
            found = local[home][name]
            assert found["mean"] == pytest.approx(area(trial, site, out, tmp_path))
            assert found["ci95"][0] <= found["mean"] <= found["ci95"][1]
    # Age works in opposite directions: a model is wrong at the other site.
    assert local["north"]["north"]["mean"] > local["north"]["south"]["mean"] + 0.1
    assert list(local) == list(SITES)
    assert list(federated) == ["federated"]
    per_site = result["arms"][1]["per_site"]
    for name in SITES:
        assert federated["federated"][name]["mean"] == per_site[name]["auroc_macro"]
        assert local[name][name]["mean"] == result["arms"][0]["per_site"][name]["auroc_macro"]


def test_folds_and_seeds_are_put_together_in_the_order_of_the_truth(tmp_path):
    config = write_ward(tmp_path / "ward")
    comparison = plan(config, regimes=["local"], folds=2, seeds=2)
    runner = FakeRunner()
    (arm,) = run(comparison, runner, tmp_path / "out")["arms"]
    for name in SITES:  # at home: the very scores that the arm itself has
        assert arm["cross_site"][name][name]["mean"] == pytest.approx(
            arm["per_site"][name]["auroc_macro"]
        )
    assert len(runner.runs) == 2 * 2 * 2


def test_only_what_is_lacking_is_scored_again(tmp_path):
    config = write_ward(tmp_path / "ward")
    out, runner = tmp_path / "out", FakeRunner()
    before = run(plan(config, regimes=["local"]), runner, out)
    assert len(runner.runs) == 2
    elsewhere = sorted(out.rglob("logits-*.npy"))
    assert len(elsewhere) == 2
    elsewhere[0].unlink()
    assert run(plan(config, regimes=["local"]), runner, out) == before
    assert len(runner.runs) == 2
    # Other studies at the south: north's model stays, and is scored there anew.
    table = config.parent / "sites" / "south" / "studies.csv"
    table.write_text(table.read_text().replace(",1,", ",0,", 5))
    comparison = plan(config, regimes=["local"])
    ((north, south),) = comparison.trials[0]
    folder = out / "runs" / north.name
    assert (folder / "logits.npy").exists()
    finish(north, runner, out=out)
    assert len(runner.runs) == 2
    assert len(list(folder.glob("logits-south-*.npy"))) == 2
    assert not (out / "runs" / south.name).exists()


def test_the_matrix_is_written(tmp_path):
    config = write_ward(tmp_path / "ward")
    run(plan(config, regimes=["local"]), FakeRunner(), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(found["arms"][0]["cross_site"]["south"]) == set(SITES)
