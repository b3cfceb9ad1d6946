import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tabular_cohort import write_ward
from typer.testing import CliRunner, Result

from medfusion.cli.evaluate import evaluate
from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST
from medfusion.errors import DataError, UsageError
from medfusion.models.contract import trainable_state
from medfusion.models.options import LogisticOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model

VALUE, FIRST_INDICATOR = 0, 2  # entries of a column that the model reads


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_ward(tmp_path / "ward").parent / "sites" / "north"


@pytest.fixture
def model(site: Path, tmp_path: Path) -> Path:
    return write_model(site, tmp_path / "model", method="none")


def write_model(site: Path, folder: Path, *, method: str, reads: int = VALUE) -> Path:
    """Write a model that scores both labels by one entry of the first column, the age."""
    task = load_site_data(site).task
    options = LogisticOptions()
    module = build_model(options, task, seed=0)
    with torch.no_grad():
        module.linear.tabular.weight[:, reads] = 3.0
    card = {
        "task": task.to_json(),
        "model": options.model_dump(mode="json"),
        "seed": 0,
        "selection": None,
        "selection_method": method,
        "top_n": 1,
    }
    save_model(folder, trainable_state(module), card)
    return folder


def call(model: Path, site: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(evaluate)
    return CliRunner().invoke(app, [str(model), str(site), *arguments])


def test_figures_as_json(model, site):
    result = call(model, site, "--json")
    assert result.exit_code == 0, result.output + str(result.exception)
    found = json.loads(result.stdout)
    studies = load_site_data(site).part(TEST)
    assert (found["schema"], found["site"]) == (1, "north")
    assert (found["patients"], found["studies"]) == (studies.n_patients, len(studies))
    ill, dead = found["labels"]["ill"], found["labels"]["dead"]
    assert ill["auroc"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert ill["auprc"] == 1.0
    assert ill["positives"] == int((studies.labels[:, 0] == 1).sum())
    assert ill["unknown"] == 0
    assert ill["sensitivity_at_90_specificity"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert found["specificity_at_90_sensitivity"]["mean"] < 1.0
    curve = ill["decision_curve"]
    assert all(np.array(curve["model"]) >= np.array(curve["all"]) - 1e-12)
    assert dead["unknown"] == int(np.isnan(studies.labels[:, 1]).sum()) > 0
    assert sum(dead[key] for key in ("positives", "negatives", "unknown")) == len(studies)
    low, high = dead["auroc"]["ci95"]
    assert low < dead["auroc"]["mean"] < high
    probability = 1 / (1 + np.exp(-3 * (studies.features[:, 0] / 50 - 1)))
    assert ill["brier"] == pytest.approx(np.mean((probability - studies.labels[:, 0]) ** 2))
    assert found["auroc_macro"]["mean"] == pytest.approx(
        (ill["auroc"]["mean"] + dead["auroc"]["mean"]) / 2
    )


def test_figures_as_a_table(model, site):
    result = call(model, site)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "site north: " in result.output
    assert "mean" in result.output
    assert "p1" not in result.output  # no patient


def test_a_label_of_one_class_has_no_auroc(model, site):
    table = site / "studies.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *(row.rpartition(",")[0] + ",1" for row in rows)]) + "\n")
    found = json.loads(call(model, site, "--json").stdout)
    assert found["labels"]["dead"]["auroc"] == {"mean": None, "ci95": None}
    assert found["labels"]["dead"]["negatives"] == 0
    assert call(model, site).exit_code == 0


@pytest.mark.parametrize("name", ["north", "south"])
def test_under_local_selection_the_site_selects_for_itself(site, tmp_path, name):
    """The model reads on which side of its own site's cut the age lies."""
    folder = write_model(site, tmp_path / "local", method="local", reads=FIRST_INDICATOR)
    found = json.loads(call(folder, site.with_name(name), "--json").stdout)
    assert found["labels"]["ill"]["auroc"]["mean"] == 1.0
    blind = write_model(site, tmp_path / "none", method="none", reads=FIRST_INDICATOR)
    found = json.loads(call(blind, site.with_name(name), "--json").stdout)
    assert found["labels"]["ill"]["auroc"]["mean"] == 0.5


def test_another_task_is_refused(model, site):
    task = site.parents[1] / "task.toml"
    task.write_text(task.read_text().replace("high = 100", "high = 110", 1))
    error = call(model, site).exception
    assert isinstance(error, DataError)
    assert "differs from the model's in [features]" in str(error)


def test_a_site_without_test_patients_is_refused(site, tmp_path):
    task = site.parents[1] / "task.toml"
    task.write_text(task.read_text().replace("test = 0.3", "test = 0.0"))
    error = call(write_model(site, tmp_path / "model", method="none"), site).exception
    assert isinstance(error, DataError)
    assert "expected test patients" in str(error)


def test_what_is_no_model_is_refused(site, tmp_path):
    error = call(tmp_path, site).exception
    assert isinstance(error, DataError)
    assert "model.json" in str(error)


def test_groups_have_figures_of_their_own(model, site):
    found = json.loads(call(model, site, "--by", "age:30,70", "--by", "dose:50", "--json").stdout)
    studies = load_site_data(site).part(TEST)
    ages, doses = found["subgroups"]
    assert (ages["by"], doses["by"]) == ("age", "dose")
    assert [group["group"] for group in doses["groups"]] == ["below 50", "50 and above"]
    young = studies.patient_ids[studies.features[:, 0] < 30]
    assert ages["groups"][0]["patients"] == len(np.unique(young))
    assert sum(group["studies"] for group in ages["groups"]) == len(studies)
    assert "AUROC" in call(model, site, "--by", "dose:50").output
    assert "subgroups" not in json.loads(call(model, site, "--json").stdout)


def test_the_smallest_group_is_the_policys(model, site):
    (group,) = json.loads(call(model, site, "--by", "age:1", "--json").stdout)["subgroups"]
    assert group["min_patients"] == 10
    with (site / "site.toml").open("a") as file:
        file.write("[policy]\nmin_patients = 2\n")
    few = json.loads(call(model, site, "--by", "dose:50", "--json").stdout)["subgroups"][0]
    assert few["min_patients"] == 2
    assert all(group["figures"]["auroc_macro"]["ci95"] for group in few["groups"])


def test_an_unknown_feature_makes_no_groups(model, site):
    error = call(model, site, "--by", "agee:30").exception
    assert isinstance(error, UsageError)
    assert "did you mean 'age'" in str(error)
