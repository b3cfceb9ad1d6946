import json
import os
from pathlib import Path

import pytest
import typer
from tabular_cohort import write_ward
from typer.testing import CliRunner, Result

import medfusion.cli.compare as compare_command
from medfusion.cli.compare import compare
from medfusion.errors import ConfigError, MedFusionError, UsageError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_ward(tmp_path / "ward")


def call(config: Path, out: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(compare)
    return CliRunner().invoke(app, [str(config), "--out", str(out), *arguments])


def refused(config: Path, out: Path, *arguments: str) -> MedFusionError:
    result = call(config, out, *arguments)
    assert isinstance(result.exception, MedFusionError), result.output
    assert not (out / "runs").exists()
    return result.exception


def test_regimes_and_selections_side_by_side(config, tmp_path):
    out = tmp_path / "out"
    options = ("--regimes", "local,federated", "--vary", "selection.method=federated,local")
    result = call(config, out, *options)
    assert result.exit_code == 0, result.output + str(result.exception)
    found = json.loads((out / "compare.json").read_text())
    assert set(found) == {
        "schema",
        "arms",
        "differences",
        "n_patients",
        "seeds",
        "folds",
        "resamples",
    }
    assert (found["schema"], found["seeds"], found["folds"]) == (1, 1, None)
    assert [(arm["regime"], arm["settings"]["selection.method"]) for arm in found["arms"]] == [
        ("local", "federated"),
        ("federated", "federated"),
        ("local", "local"),
        ("federated", "local"),
    ]
    local, federated, _, adapted = (arm["auroc"]["ill"]["mean"] for arm in found["arms"])
    # Age means the opposite at each site. One model can follow only where each site's own
    # thresholds give the direction.
    assert local > 0.95
    assert federated < 0.8
    assert adapted > 0.95
    low, high = found["arms"][1]["auroc_macro"]["ci95"]
    assert low <= found["arms"][1]["auroc_macro"]["mean"] <= high
    assert len(found["differences"]) == 6
    assert set(found["arms"][0]["per_site"]) == {"north", "south"}
    assert found["arms"][0]["auprc"]["ill"] == found["arms"][0]["auprc_macro"]
    for figure in ("auprc_macro", "auroc_within_sites"):
        assert all(row[figure]["ci95"] for row in found["differences"])
    assert "AUROC by label" in result.output
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    assert 80 < max(len(row) for row in rows) <= 100
    assert "within a fold" not in result.output
    for arm in found["arms"]:
        worst = arm["worst_site"]
        assert worst == {
            "site": worst["site"],
            "auroc_macro": min(site["auroc_macro"] for site in arm["per_site"].values()),
        }
        assert arm["per_site"][worst["site"]]["auroc_macro"] == worst["auroc_macro"]
        low, high = arm["auroc_macro"]["ci95"]
        for shown in (
            f"{arm['auroc_macro']['mean']:.3f} ({low:.3f} to {high:.3f})",
            f"{arm['auroc_within_sites']['mean']:.3f}",
            f"{worst['auroc_macro']:.3f} {worst['site']}",
            f"{arm['auprc_macro']['mean']:.3f}",
        ):
            assert shown in result.output
    assert "1000 resamples" in result.output
    home = found["arms"][0]["cross_site"]["north"]["north"]
    assert home["mean"] == found["arms"][0]["per_site"]["north"]["auroc_macro"]
    assert "trained at" in result.output
    page = (out / "compare.html").read_text()
    assert page.count("Cross-site matrix of arm") == 2
    assert f"{home['mean']:.3f}<small>" in page
    assert not any((config.parent / "sites").rglob("*.state"))
    assert not list(out.rglob("report.html"))

    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    again = call(config, out, *options)
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
    assert json.loads((out / "compare.json").read_text()) == found


def test_a_run_killed_before_its_sites_models_are_kept_goes_on(config, tmp_path, monkeypatch):
    arguments = ("--regimes", "federated", "--set", "selection.method=local")
    with monkeypatch.context() as killed:
        killed.setattr(compare_command, "_keep_delivered", lambda sites, out: os._exit(9))
        assert "ended unexpectedly" in str(call(config, tmp_path / "cut", *arguments).exception)
    assert list((tmp_path / "cut").glob("runs/*/summary.json"))
    results = []
    for name in ("cut", "whole"):
        result = call(config, tmp_path / name, *arguments)
        assert result.exit_code == 0, result.output + str(result.exception)
        results.append(json.loads((tmp_path / name / "compare.json").read_text()))
    assert results[0] == results[1]
    assert "resumed after round 2" in next((tmp_path / "cut").glob("runs/*/log.txt")).read_text()


def test_personal_models_suit_sites_that_contradict_each_other(config, tmp_path):
    arguments = ["--regimes", "federated,personalised", "--set", "personalisation.steps=40"]
    result = call(config, tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    common, personal = json.loads((tmp_path / "out" / "compare.json").read_text())["arms"]
    assert personal["regime"] == "personalised"
    gain = personal["auroc_within_sites"]["mean"] - common["auroc_within_sites"]["mean"]
    assert gain > 0.1
    for arm in (common, personal):
        assert set(arm["per_site"]) == {"north", "south"}


def test_folds_under_privacy(config, tmp_path):
    arguments = ["--set", "privacy.enabled=true", "--set", "run.rounds=1"]
    arguments += ["--regimes", "federated", "--folds", "2", "--seeds", "2"]
    result = call(config, tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (found["n_patients"], found["seeds"], found["folds"]) == (120, 2, 2)
    assert "ranked within a fold" in result.output
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--regimes", "pool"], UsageError, "did you mean 'pooled'"),
        (["--vary", "training.batch_size"], UsageError, "KEY=A,B"),
        (["--vary", "training.batchsize=1,2"], ConfigError, "did you mean 'batch_size'"),
        (["--vary", "strategy.name=fedavg,fedavgg"], ConfigError, "did you mean 'fedavg"),
        (["--vary", "privacy.enabled=false,true", "--set", "privacy.target_epsilon=100"],
         ConfigError, "allows at most 8"),
        (["--set", "server.min_sites=3"], ConfigError, "found only 2 sites"),
        (["--set", "model.name=medfusion_net", "--vary", "model.modalities=tabular,image"],
         ConfigError, "offers only tabular"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(
    config, tmp_path, arguments, error, message
):
    found = refused(config, tmp_path / "out", *arguments)
    assert isinstance(found, error)
    assert message in str(found)
    assert found.exit_code == 2


def test_a_folder_with_other_content_is_refused(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("")
    assert "choose another --out" in str(refused(config, tmp_path / "out"))


def test_one_fold_is_no_fold(config, tmp_path):
    assert call(config, tmp_path / "out", "--folds", "1").exit_code == 2
    assert call(config, tmp_path / "out", "--seeds", "0").exit_code == 2
