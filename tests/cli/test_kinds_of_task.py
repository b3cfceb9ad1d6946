"""Classes and numbers take the whole way: simulate, report, evaluate, compare."""

import json

import numpy as np
import pytest
import torch
from command_line import call, simulated, tried
from kinds_cohort import write_kind

from medfusion.errors import ConfigError

torch.set_num_threads(1)

KINDS = ("multiclass", "regression")
PRIVATE = ("privacy.enabled=true", "privacy.target_epsilon=90", "training.batch_size=64")


def good(kind: str, figures: dict) -> bool:
    """Whether figures are far from chance: a mean predictor is 12.5 days off."""
    if kind == "regression":
        return figures["mae"] < 8.0
    return figures["auroc_macro"] > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_a_federation_learns_it_and_reports_it(kind, tmp_path):
    config = write_kind(tmp_path / "cohort", kind)
    out = tmp_path / "run"
    output = call("simulate", config, "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert good(kind, summary)
    page = (out / "report.html").read_text()
    assert json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]
    if kind == "regression":
        assert summary["auroc_macro"] is None
        assert summary["mae"] <= summary["rmse"]
        assert summary["sites"]["north"]["mae"] == pytest.approx(summary["mae"], rel=0.5)
        assert "MAE" in output
        assert "day off on average" in page
    else:
        confusion = np.array(summary["confusion"])
        assert confusion.shape == (3, 3)
        assert np.trace(confusion) / confusion.sum() > 0.5
        recall = np.diag(confusion) / confusion.sum(axis=1)
        assert summary["balanced_accuracy"] == pytest.approx(recall.mean())
        assert "True and most probable class" in page
    site = tmp_path / "cohort" / "sites" / "south"
    found = json.loads(call("evaluate", out / "model", site, "--json"))
    key = "mae" if kind == "regression" else "auroc_macro"
    assert good(kind, {key: found[key]["mean"]})
    assert ("day (95% CI" if kind == "regression" else "balanced_accuracy") in call(
        "evaluate", out / "model", site
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_run_releases_noised_figures_near_the_true_ones(kind, tmp_path):
    config = write_kind(tmp_path / "cohort", kind)
    summary = simulated(config, tmp_path / "run", *PRIVATE)
    assert good(kind, summary)
    released = json.loads((tmp_path / "run" / "histograms.json").read_text())["sites"]["north"]
    assert not np.array_equal(np.round(released), released)
    assert summary["sites"]["north"]["epsilon"] > 1
    assert "carry privacy noise" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_compare_has_the_figures_of_the_kind(kind, tmp_path):
    config = write_kind(tmp_path / "cohort", kind)
    losses = {"multiclass": "cross_entropy", "regression": "mse,huber"}[kind]
    output = call(
        "compare", config, "--out", tmp_path / "out", "--regimes", "local,federated",
        "--vary", f"training.loss.name={losses}", "--folds", "2",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    key = {"multiclass": "auroc_macro", "regression": "mae"}[kind]
    for arm in found["arms"]:
        low, high = arm[key]["ci95"]
        assert low < arm[key]["mean"] < high
        assert arm["worst_site"][key] in [site[key] for site in arm["per_site"].values()]
    assert all(pair[key]["ci95"] for pair in found["differences"])
    if kind == "regression":
        worst = max(site["mae"] for site in found["arms"][0]["per_site"].values())
        assert found["arms"][0]["worst_site"]["mae"] == worst
        assert found["arms"][0]["auroc_macro"] == {"mean": None, "ci95": None}
        assert found["arms"][1]["mae"] != found["arms"][3]["mae"]
        assert "MAE (95% CI)" in output
    else:
        known = sum(map(sum, found["arms"][0]["confusion"]))
        assert known == 2 * (120 - 11)
        assert set(found["arms"][0]["recall"]) == {"well", "ill", "worse"}
        assert "balanced" in output


def test_a_loss_of_another_kind_is_refused_before_anything_runs(tmp_path):
    config = write_kind(tmp_path / "cohort", "regression")
    arguments = ["simulate", str(config), "--out", str(tmp_path / "run")]
    result = tried(*arguments, "--set", "training.loss.name=focal")
    assert isinstance(result.exception, ConfigError)
    assert "mse, huber" in str(result.exception)
