"""A run calibrates its model; `evaluate`, `predict` and every hospital's copy use that."""

import csv
import json

import numpy as np
import pytest
import torch
from command_line import call, simulated
from kinds_cohort import write_kind
from node_asker import NodeAsker
from sklearn.metrics import roc_auc_score
from tabular_cohort import write_ward

from medfusion.data.site_data import load_site_data
from medfusion.data.split import CALIBRATION, TEST
from medfusion.data.thresholds import first_study_per_patient
from medfusion.errors import DataError
from medfusion.evaluation.score_histograms import BINS, bin_numbers
from medfusion.models.saved import load_model
from medfusion.scoring import apply_model, study_tensors
from medfusion.transport.requests import read_error

torch.set_num_threads(1)


def rows_of(model, site, out) -> list[dict[str, str]]:
    call("predict", model, site, "--out", out)
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ward") / "ward"
    config = write_ward(folder, patients=150, sites=("north", "east"))
    task = folder / "task.toml"
    task.write_text(task.read_text().replace("calibration = 0.1", "calibration = 0.3"))
    return config


@pytest.fixture(scope="module")
def run(ward, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    return out, simulated(ward, out)


def test_the_folder_tells_what_calibration_changed(run, ward):
    out, summary = run
    calibration = load_model(out / "model").calibration
    sites = {name: load_site_data(ward.parent / "sites" / name) for name in ("north", "east")}
    patients = sum(site.part(CALIBRATION).n_patients for site in sites.values())
    ill = calibration.labels["ill"]
    assert ill.positives + ill.negatives == patients
    assert calibration.method == "platt"
    found = summary["calibration"]
    assert found["ece_before"] == pytest.approx(summary["ece"])
    assert found["ece_after"] != found["ece_before"]
    assert 0.7 < found["coverage"] <= 1
    assert (found["wanted_coverage"], found["wanted_sensitivity"]) == (0.9, 0.9)
    for name in sites:
        assert summary["sites"][name]["coverage"] == calibration.test["sites"][name]["coverage"]
    released = json.loads((out / "histograms.json").read_text())["calibration"]
    assert np.sum([released[name][0] for name in sites]) == patients
    assert sum(ill.score_shares) == pytest.approx(1)


def test_evaluate_measures_the_calibration_on_raw_scores(run, ward):
    out, _ = run
    site = ward.parent / "sites" / "north"
    found = json.loads(call("evaluate", out / "model", site, "--json"))["calibration"]
    assert found["method"] == "platt"
    for key in ("coverage", "sensitivity", "specificity"):
        assert 0 <= found["labels"]["ill"][key] <= 1
    assert "coverage" in call("evaluate", out / "model", site)
    plain = json.loads(call("evaluate", out / "model", site, "--json"))["labels"]["ill"]
    curve = found["labels"]["ill"]["decision_curve"]
    assert curve["all"] == plain["decision_curve"]["all"]
    assert curve["model"] != plain["decision_curve"]["model"]
    (out / "model" / "calibration.json").rename(out / "aside.json")
    assert "calibration" not in json.loads(call("evaluate", out / "model", site, "--json"))
    (out / "aside.json").rename(out / "model" / "calibration.json")


def test_predict_tells_calibrated_probabilities_decisions_and_sets(run, ward, tmp_path):
    out, _ = run
    site = ward.parent / "sites" / "north"
    rows = rows_of(out / "model", site, tmp_path / "with.csv")
    calibration = load_model(out / "model").calibration
    (out / "model" / "calibration.json").rename(out / "aside.json")
    plain = rows_of(out / "model", site, tmp_path / "without.csv")
    (out / "aside.json").rename(out / "model" / "calibration.json")
    for label in ("ill", "dead"):
        p = np.array([float(row[f"{label}_probability"]) for row in plain])
        logits = np.log(p / (1 - p))
        column = ("ill", "dead").index(label)
        read = calibration.read(np.stack([logits, logits], axis=1))
        told = [float(row[f"{label}_probability"]) for row in rows]
        np.testing.assert_allclose(told, read.probabilities[:, column], atol=1e-4)
        decided = np.array([row[f"{label}_decision"] == "1" for row in rows])
        assert np.mean(decided == read.decisions[:, column]) > 0.98  # six digits of a probability
        assert {row[f"{label}_set"] for row in rows} <= {"0", "1", "0+1", "none"}
        assert f"{label}_set" not in plain[0]
        held = np.array(["1" in row[f"{label}_set"] for row in rows])
        assert np.mean(held == read.present[:, column]) > 0.98


def test_the_options_of_a_run_change_what_is_told(ward, run, tmp_path):
    out, before = run
    sets = ("evaluation.calibration=isotonic", "evaluation.sensitivity=0.5")
    other = simulated(ward, tmp_path / "run", *sets, "evaluation.coverage=0.6")["calibration"]
    assert other["method"] == "isotonic"
    assert other["ece_after"] != before["calibration"]["ece_after"]
    assert other["set_size"] < before["calibration"]["set_size"]
    found = [load_model(folder / "model").calibration for folder in (out, tmp_path / "run")]
    assert found[0].labels["ill"].operating_bin < found[1].labels["ill"].operating_bin


def test_figures_of_subgroups_are_those_of_their_pooled_patients(ward, tmp_path):
    summary = simulated(ward, tmp_path / "run", "evaluation.subgroups=['dose:30,60']")
    found = summary["subgroups"]["dose"]
    saved = load_model(tmp_path / "run" / "model")
    parts = []
    for name in ("north", "east"):
        site = load_site_data(ward.parent / "sites" / name)
        test = site.part(TEST)
        one = test.take(first_study_per_patient(test.patient_ids))
        tensors = study_tensors(saved, site, one, cache=tmp_path / "cache")
        parts.append((one.features, one.labels, apply_model(saved, site, tensors)))
    features, labels, logits = (np.concatenate(each) for each in zip(*parts, strict=True))
    told = []
    for group, members in (
        ("below 30", features[:, 1] < 30),
        ("30 to below 60", (features[:, 1] >= 30) & (features[:, 1] < 60)),
        ("60 and above", features[:, 1] >= 60),
    ):
        of_group = found["groups"][group]
        assert of_group["patients"] == members.sum()
        binned = bin_numbers(logits[members, 0], BINS)
        area = roc_auc_score(labels[members, 0], binned)
        assert of_group["auroc"]["ill"] == pytest.approx(area)
        told.append(of_group["auroc_macro"])
    assert found["gap"] == pytest.approx(max(told) - min(told))


def test_under_privacy_it_is_fitted_to_what_was_noised(ward, tmp_path):
    sets = ("privacy.enabled=true", "privacy.target_epsilon=8", "training.batch_size=40")
    summary = simulated(ward, tmp_path / "run", *sets)
    calibration = load_model(tmp_path / "run" / "model").calibration
    assert calibration.bins == 32
    released = json.loads((tmp_path / "run" / "histograms.json").read_text())["calibration"]
    assert np.shape(released["north"]) == (2, 2, 32)
    assert np.min(released["north"]) < 0
    assert summary["sites"]["north"]["epsilon"] <= 8


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_classes_are_calibrated_and_numbers_are_not(tmp_path, kind):
    config = write_kind(tmp_path / "cohort", kind, patients=300)
    summary = simulated(config, tmp_path / "run")
    site = config.parent / "sites" / "north"
    rows = rows_of(tmp_path / "run" / "model", site, tmp_path / "out.csv")
    if kind == "regression":
        assert summary["calibration"] is None
        assert not (tmp_path / "run" / "model" / "calibration.json").exists()
        return
    names = ("well", "ill", "worse")
    assert summary["calibration"]["ece_after"] != summary["calibration"]["ece_before"]
    assert 0.7 < summary["calibration"]["coverage"] <= 1
    found = json.loads(call("evaluate", tmp_path / "run" / "model", site, "--json"))
    (tmp_path / "run" / "model" / "calibration.json").unlink()
    plain = rows_of(tmp_path / "run" / "model", site, tmp_path / "plain.csv")
    for row, before in zip(rows, plain, strict=True):
        told = [float(row[f"{name}_probability"]) for name in names]
        assert sum(told) == pytest.approx(1, abs=1e-4)
        scores = [float(before[f"{name}_probability"]) for name in names]
        assert row["decision"] == names[int(np.argmax(scores))]
        assert set(row["set"].split("+")) <= {*names, "none"}
    with (site / "studies.csv").open(encoding="utf-8", newline="") as file:
        truth = {row["study_id"]: row["state"] for row in csv.DictReader(file)}
    part = load_site_data(site).part(TEST)
    tested = [row for row in rows if row["study_id"] in part.study_ids and truth[row["study_id"]]]
    for name in names:
        curve = found["calibration"]["labels"][name]["decision_curve"]
        for threshold, gain in zip(curve["thresholds"], curve["model"], strict=True):
            expected = 0.0
            for row in tested:
                if float(row[f"{name}_probability"]) >= threshold:
                    hit = truth[row["study_id"]] == name
                    expected += 1.0 if hit else -threshold / (1 - threshold)
            assert gain == pytest.approx(expected / len(tested), abs=1e-9)


def test_a_hospital_s_copy_brings_its_calibration(run, ward, tmp_path):
    out, _ = run
    asker = NodeAsker(ward.parent, tmp_path)
    settings = asker.settings
    card = {
        "task_sha256": settings.task_sha256,
        "task": asker.data.task.to_json(),
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
        "selection": None,
        "selection_method": settings.selection.method,
        "top_n": settings.selection.top_n,
    }
    sent = json.loads((out / "model" / "calibration.json").read_text())
    assert read_error(asker.ask("deliver", card=card | {"calibration": sent})) is None
    folder = asker.state.model_folder(settings.run_id)
    assert load_model(folder).calibration == load_model(out / "model").calibration
    other = sent | {"labels": {"other": sent["labels"]["ill"]}}
    refusal = read_error(asker.ask("deliver", card=card | {"calibration": other}))
    assert "its labels are not the task's" in str(refusal)
    broken = sent | {"bins": -1}
    assert "bins" in str(read_error(asker.ask("deliver", card=card | {"calibration": broken})))
    assert load_model(folder).calibration is not None
    assert read_error(asker.ask("deliver", card=card)) is None
    assert load_model(folder).calibration is None  # never that of an earlier delivery


def test_a_damaged_calibration_is_refused(run, ward, tmp_path):
    out, _ = run
    path = out / "model" / "calibration.json"
    whole = path.read_text()
    for text in ("{", "[]", whole.replace('"ill"', '"other"')):
        path.write_text(text)
        with pytest.raises(DataError, match=r"calibration\.json is not one"):
            load_model(out / "model")
    path.write_text(whole)
