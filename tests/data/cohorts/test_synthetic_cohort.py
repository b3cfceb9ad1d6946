import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medfusion.config import load_config
from medfusion.data.cohorts import synthetic
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.cohorts.synthetic_hospitals import hospital
from medfusion.data.cohorts.synthetic_signal import FEATURES, LABELS
from medfusion.data.cohorts.synthetic_tables import site_sections, write_table
from medfusion.data.cohorts.writing import write_site, write_task
from medfusion.data.images import decode_image
from medfusion.data.site import open_site
from medfusion.data.site_data import load_site_data
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.data.thresholds import feature_label_histograms, select_features
from medfusion.errors import UsageError

NAMES = ("alder", "birch", "cedar", "dogwood")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort") / "out"
    write_cohort(out, sites=4, patients=1500, seed=7)
    return out


@pytest.fixture(scope="module")
def studies(cohort):
    return {name: read_studies(open_site(cohort / "sites" / name)) for name in NAMES}


@pytest.fixture(scope="module")
def oracle(cohort):
    with (cohort / "oracle.csv").open(newline="") as file:
        return {row["study_id"]: row for row in csv.DictReader(file)}


def _known(studies, oracle, label, suffix=""):
    """Labels and probabilities of all studies in which a label is known."""
    truth, probability = [], []
    for site in studies.values():
        column = site.labels[:, LABELS.index(label)]
        kept = ~np.isnan(column)
        truth.append(column[kept])
        rows = [oracle[study] for study in site.study_ids[kept]]
        probability.append([float(row[label + suffix]) for row in rows])
    return np.concatenate(truth), np.concatenate(probability)


def _oracle_auroc(studies, oracle, suffix=""):
    return np.mean(
        [roc_auc_score(*_known(studies, oracle, label, suffix)) for label in LABELS], dtype=float
    )


def test_each_modality_carries_what_the_others_lack(studies, oracle):
    together = _oracle_auroc(studies, oracle)
    alone = {
        name: _oracle_auroc(studies, oracle, f".{name}") for name in ("image", "tabular", "text")
    }
    assert together > 0.89
    assert all(0.68 < value < 0.78 for value in alone.values()), alone
    assert together - max(alone.values()) > 0.12


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("suffix", ["", ".image", ".tabular", ".text"])
def test_oracle_probabilities_are_calibrated(studies, oracle, label, suffix):
    truth, probability = _known(studies, oracle, label, suffix)
    order = np.argsort(probability, kind="stable")
    for part in np.array_split(order, 8):
        error = np.sqrt((probability[part] * (1 - probability[part])).sum()) / len(part)
        assert abs(truth[part].mean() - probability[part].mean()) < 4.5 * error + 0.02


def test_hospitals_differ(studies):
    prevalence = [np.nanmean(studies[name].labels[:, 0]) for name in NAMES]
    assert max(prevalence) - min(prevalence) > 0.04
    assert not any(studies["birch"].notes)
    assert all(studies["alder"].notes)
    assert np.isnan(studies["cedar"].labels[:, LABELS.index("effusion")]).all()
    assert 0 < np.isnan(studies["alder"].labels).mean() < 0.05
    missing = sum(image is None for image in studies["cedar"].images) / len(studies["cedar"])
    assert 0.03 < missing < 0.1
    assert np.isnan(studies["dogwood"].features).mean() > 0.05


def test_some_patients_have_several_studies(studies):
    _, counts = np.unique(studies["alder"].patient_ids, return_counts=True)
    assert set(counts) == {1, 2, 3}
    assert len(counts) == 1500


def test_rare_label_occurs_only_with_the_common_one(studies):
    labels = np.concatenate([site.labels for site in studies.values()])
    pneumonia, shock = labels[:, LABELS.index("pneumonia")], labels[:, LABELS.index("septic_shock")]
    both = ~np.isnan(pneumonia)
    assert (pneumonia[both & (shock == 1)] == 1).all()
    assert 0.02 < np.nanmean(shock) < 0.15


def test_thresholds_find_the_planted_cut_points(cohort, studies):
    task = Task.load(cohort / "task.toml")
    histograms = sum(
        feature_label_histograms(site.features, site.labels, task) for site in studies.values()
    )
    selection = select_features(histograms, task, top_n=3)
    truth = json.loads((cohort / "oracle.json").read_text())
    assert truth["schema"] == 1
    assert {cut["label"] for cut in truth["cut_points"]} == set(LABELS)
    for cut in truth["cut_points"]:
        found = [t for t in selection.thresholds if t.label == cut["label"]]
        best = max(found, key=lambda t: t.score)
        assert (best.feature, best.direction) == (cut["feature"], cut["direction"])
        assert best.value == pytest.approx(cut["value"])
        assert not {t.feature for t in found if t.score > 0.06} & set(truth["noise_features"])


@pytest.mark.parametrize("index", range(4))
def test_local_columns_units_and_codes_lead_back_to_the_same_facts(tmp_path, index):
    place = hospital(index)
    values = {"age": "64", "sex": "F", "smoker": "1", "admission": "ambulance"}
    values |= {"temperature": "38.27", "heart_rate": "101", "systolic_pressure": "88"}
    values |= {"oxygen_saturation": "91.4", "crp": "123.4", "bnp": "512", "albumin": "29.3"}
    values |= {"potassium": "4.1", "haematocrit": "38.6"}
    row = {"study_id": "s1", "patient_id": "p1", "image": "", "notes": "cough, fever"}
    row |= values | dict.fromkeys(LABELS, "1") | {"septic_shock": ""}
    gaps = row | {"study_id": "s2", **dict.fromkeys(FEATURES, "")}
    write_task(tmp_path, synthetic._task_sections(32))
    folder = tmp_path / "sites" / place.name
    (folder / "images").mkdir(parents=True)
    write_table(folder / place.table, [row, gaps], place)
    write_site(tmp_path, place.name, **site_sections(place))
    read = read_studies(open_site(folder))
    expected = [
        feature.values.index(values[name]) if feature.kind == "categorical" else float(values[name])
        for name, feature in FEATURES.items()
    ]
    np.testing.assert_allclose(read.features[0], expected, rtol=1e-6)
    assert np.isnan(read.features[1]).all()
    known = [np.nan if name in place.absent or name == "septic_shock" else 1 for name in LABELS]
    np.testing.assert_array_equal(read.labels, [known, known])
    assert read.notes[0] == (None if "notes" in place.absent else "cough, fever")


def test_local_units_are_the_usual_ones(tmp_path):
    row = dict.fromkeys(["study_id", "patient_id", "image", "notes", *FEATURES, *LABELS], "")
    row |= {"temperature": "38.27", "crp": "123.4", "albumin": "29.3"}
    written = {}
    for index in (1, 2):
        place = hospital(index)
        write_table(tmp_path / f"{index}.csv", [row], place)
        with (tmp_path / f"{index}.csv").open(newline="") as file:
            written |= next(csv.DictReader(file, delimiter=place.delimiter))
    assert written["temp_f"] == "100.886"
    assert written["CRP (mg/dl)"] == "12,34"
    assert written["albumin_g_dl"] == "2.93"


def test_hospitals_have_patients_of_their_own(studies):
    column = list(FEATURES).index("bnp")
    first = [studies[name].features[:500, column] for name in NAMES]
    for i, j in [(0, 1), (1, 2), (2, 3)]:
        assert np.nanmean(first[i] == first[j]) < 0.05


def test_images_decode_at_the_size_of_the_task(cohort, studies):
    task = Task.load(cohort / "task.toml")
    for site in studies.values():
        path = next(image for image in site.images if image)
        assert decode_image(path, task.image).shape == (1, 32, 32)


def test_config_runs_over_these_sites_and_counts_are_declared(cohort):
    config = load_config(cohort / "config.toml")
    assert config.run.task == (cohort / "task.toml").resolve()
    assert config.model.size == "tiny"
    assert config.privacy.enabled
    assert config.privacy.target_epsilon == 8
    folders = sorted(Path("/").glob(config.simulation.sites.lstrip("/")))
    assert [folder.name for folder in folders] == list(NAMES)
    for folder in folders:
        data = load_site_data(folder)
        training = len(np.unique(data.part(0).patient_ids))
        assert data.patients_public == training > 900
        assert data.state.parent == (cohort / "state").resolve()


def test_oracle_lies_outside_the_sites_and_covers_every_study(cohort, studies, oracle):
    assert {study for site in studies.values() for study in site.study_ids} == set(oracle)
    assert not list((cohort / "sites").rglob("oracle*"))


def _bytes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes(tmp_path):
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        write_cohort(tmp_path / name, sites=4, patients=20, seed=seed)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert _bytes(tmp_path / "a") != _bytes(tmp_path / "c")


def test_a_hospital_does_not_change_when_others_are_added(tmp_path):
    write_cohort(tmp_path / "two", sites=2, patients=20, seed=3)
    write_cohort(tmp_path / "many", sites=11, patients=20, seed=3)
    few, many = _bytes(tmp_path / "two" / "sites"), _bytes(tmp_path / "many" / "sites")
    assert few.items() <= many.items()
    assert len({path.split("/")[0] for path in many}) == 11


def test_image_size_changes_images_only(tmp_path):
    for size in (32, 64):
        write_cohort(tmp_path / str(size), sites=1, patients=20, seed=3, image_size=size)
    tables = [(tmp_path / str(size) / "sites/alder/studies.csv").read_bytes() for size in (32, 64)]
    assert tables[0] == tables[1]
    task = Task.load(tmp_path / "64" / "task.toml")
    assert task.image.size == (64, 64)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"sites": 0}, "sites: expected 1 to"),
        ({"patients": 3}, "patients: expected 20 to"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"image_size": 128}, "image size: expected 32 to 64, found 128"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, numbers, message):
    with pytest.raises(UsageError, match=message):
        write_cohort(tmp_path / "out", **numbers)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_config", fail)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "out", sites=1, patients=20, seed=0)
    assert not list(tmp_path.iterdir())
