"""Detection takes the whole way: check, simulate, report, evaluate, compare; also privately."""

import json

import numpy as np
import pytest
import torch
from boxes_cohort import write_boxes
from command_line import call, simulated, tried

from medfusion.data.check import check_site
from medfusion.errors import ConfigError
from medfusion.evaluation.detection_metrics import FIGURES

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_boxes(tmp_path_factory.mktemp("cohort"))


def test_the_sites_have_no_errors(cohort):
    for site in sorted((cohort.parent / "sites").iterdir()):
        assert [f for f in check_site(site).findings if f.severity == "error"] == []


def test_a_federation_trains_and_reports_boxes(cohort, tmp_path):
    out = tmp_path / "run"
    summary = simulated(cohort, out)
    for name in FIGURES:
        assert 0 <= summary[name] <= 1
        assert set(summary["detection"]) == {"above", "below"}
    assert summary["ar50_iobb"] > 0
    assert summary["sites"]["north"]["ap50"] is not None
    assert json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]["ap50"] >= 0
    assert "AP at IoU .5" in (out / "report.html").read_text()
    north = cohort.parent / "sites" / "north"
    found = json.loads(call("evaluate", out / "model", north, "--json"))
    assert found["ap50"]["mean"] == pytest.approx(summary["sites"]["north"]["ap50"], abs=0.02)
    assert found["labels"]["above"]["boxes"] == found["labels"]["above"]["positives"]
    assert "ap50_iobb" in call("evaluate", out / "model", north)


def test_a_hospital_without_boxes_takes_part(tmp_path):
    config = write_boxes(tmp_path / "cohort")
    north = config.parent / "sites" / "north"
    (north / "boxes.csv").write_text("study_id,label,x,y,width,height\n")
    assert not check_site(north).failed
    summary = simulated(config, tmp_path / "run", "run.rounds=1", "training.steps=1")
    assert summary["sites"]["north"]["ap50"] is None
    assert summary["sites"]["south"]["ap50"] is not None


def test_a_private_run_pays_for_its_boxes_and_tells_none(cohort, tmp_path):
    settings = ("privacy.enabled=true", "privacy.target_epsilon=20", "run.rounds=1")
    summary = simulated(cohort, tmp_path / "run", *settings, "training.steps=2")
    assert 1 < summary["sites"]["south"]["epsilon"] <= 20
    assert [summary[name] for name in FIGURES] == [None] * len(FIGURES)
    released = json.loads((tmp_path / "run" / "histograms.json").read_text())["sites"]["north"]
    assert np.shape(released) == (2, 2, 32)
    # whoever holds the data measures the boxes without a release
    north = cohort.parent / "sites" / "north"
    found = json.loads(call("evaluate", tmp_path / "run" / "model", north, "--json"))
    assert found["ap50"]["mean"] is not None


def test_the_four_rows_of_the_ablation_are_settings(cohort, tmp_path):
    output = call(
        "compare", cohort, "--out", tmp_path / "out", "--regimes", "federated",
        "--vary", "model.fusion_3d=none,sum", "--vary", "model.fusion_1d=false,true",
        "--set", "run.rounds=1", "--set", "training.steps=2",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(found["arms"]) == 4
    for arm in found["arms"]:
        assert set(arm["ap50_by_label"]) == {"above", "below"}
        assert arm["ap"]["ci95"] is not None
    assert "AP at IoU .5" in output
    assert "AP@.5 by label" in output
    assert "AUROC by label" not in output


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.name=logistic", "expected mdf_net"),
        ("training.loss.name=bce", "'detection' has detection"),
        ("training.small_images=0.5", "'mdf_net' reads images of one size"),
    ],
)
def test_what_does_not_go_with_boxes_is_refused(cohort, tmp_path, setting, expected):
    arguments = ["simulate", str(cohort), "--out", str(tmp_path / "run"), "--set", setting]
    result = tried(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert expected in str(result.exception)
