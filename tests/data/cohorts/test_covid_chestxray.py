import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

from medfusion.config import load_config
from medfusion.data.cohorts.covid_chestxray import FEATURES, LABELS
from medfusion.data.cohorts.registry import importer
from medfusion.data.images import decode_image
from medfusion.data.site import open_site
from medfusion.data.site_data import load_site_data
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError, UsageError

import_cohort = importer("covid-chestxray").run
SECRET = "7731"  # stands for a value that no message may hold


def _row(number, **changes):
    row = {
        "image": f"images/img_{number:04d}.jpg",
        "source_filename": f"figure-{number}.jpeg",
        "patientid": str(number // 2),
        "site": "north" if number < 20 else "south",
        "view": "PA",
        "age": "54.0",
        "sex": "F",
        "offset_days": "3.0",
        "temperature_c": "38.2",
        "po2_saturation": "91",
        "leukocyte_count": "6.5",
        "neutrophil_count": "",
        "lymphocyte_count": "0.9",
        "clinical_notes": "Known pneumonia, now worse",
        "clinical_notes_masked": "Known [MASK], now worse",
    }
    row |= dict.fromkeys(LABELS, "1.0" if number % 3 else "0.0")
    return row | {"in_icu": "", "license": "CC BY"} | changes


def write_source(folder, rows=None):
    """A small fabricated folder in the layout of the data set."""
    rows = [_row(number) for number in range(40)] if rows is None else rows
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row in rows:
        name = row["image"]
        if name.startswith("images/"):
            pixels = rng.integers(0, 255, (24, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _read(out, site):
    return read_studies(open_site(out / "sites" / site))


def test_regions_become_sites_with_features_labels_and_masked_notes(tmp_path):
    src = write_source(tmp_path / "src")
    imported = import_cohort(src, tmp_path / "out")
    assert [site.name for site in imported.sites] == ["north", "south"]
    assert [site.studies for site in imported.sites] == [20, 20]
    assert imported.notices == ()
    task = Task.load(tmp_path / "out" / "task.toml")
    assert task.labels.names == LABELS
    studies = _read(tmp_path / "out", "north")
    row = dict(zip(FEATURES, studies.features[0], strict=True))
    assert row["age"] == 54
    assert row["temperature_c"] == 38.2
    assert row["po2_saturation"] == 91
    assert row["sex"] == 0
    assert row["view"] == 0
    assert np.isnan(row["neutrophil_count"])
    assert set(studies.notes) == {"Known [MASK], now worse"}
    expected = sorted(float(number % 3 > 0) for number in range(20))
    assert sorted(studies.labels[:, LABELS.index("survival")]) == expected
    assert np.isnan(studies.labels[:, LABELS.index("in_icu")]).all()


def test_images_travel_unchanged_with_their_own_study(tmp_path):
    # The age tells which source row a study came from.
    rows = [_row(number, age=str(number)) for number in range(40)]
    src = write_source(tmp_path / "src", rows)
    import_cohort(src, tmp_path / "out")
    task = Task.load(tmp_path / "out" / "task.toml")
    for site in ("north", "south"):
        studies = _read(tmp_path / "out", site)
        for age, image in zip(studies.features[:, 0], studies.images, strict=True):
            source = src / "images" / f"img_{int(age):04d}.jpg"
            assert image.read_bytes() == source.read_bytes()
            assert decode_image(image, task.image).shape == (1, 64, 64)


def test_pseudonyms_keep_patients_together_and_hide_the_source(tmp_path):
    src = write_source(tmp_path / "src")
    import_cohort(src, tmp_path / "out")
    studies = _read(tmp_path / "out", "north")
    _, counts = np.unique(studies.patient_ids, return_counts=True)
    assert set(counts) == {2}
    written = "".join(
        path.read_text() if path.suffix == ".csv" else path.name
        for path in sorted((tmp_path / "out").rglob("*"))
        if path.is_file()
    )
    for hidden in ("img_", "figure-", "Known pneumonia"):
        assert hidden not in written


def test_import_is_the_same_whatever_the_order_of_rows(tmp_path):
    rows = [_row(number) for number in range(40)]
    hashes = []
    for name, order in [("a", rows), ("b", rows[::-1])]:
        src = tmp_path / name
        (src / "images").mkdir(parents=True)
        for row in rows:
            (src / row["image"]).write_bytes(row["image"].encode())
        with (src / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(order)
        import_cohort(src, tmp_path / f"out-{name}")
        digest = hashlib.sha256()
        for path in sorted((tmp_path / f"out-{name}").rglob("*")):
            digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
        hashes.append(digest.hexdigest())
    assert hashes[0] == hashes[1]


def test_declared_patients_are_the_training_patients_and_the_config_runs(tmp_path):
    src = write_source(tmp_path / "src")
    imported = import_cohort(src, tmp_path / "out")
    config = load_config(tmp_path / "out" / "config.toml")
    assert (config.run.rounds, config.server.min_sites, config.model.size) == (20, 2, "tiny")
    assert config.privacy.enabled
    training = config.training
    assert (training.schedule, training.augmentation) == ("cosine", "light")
    assert training.rate_multipliers.given() == {"text": 0.1}
    for summary in imported.sites:
        data = load_site_data(tmp_path / "out" / "sites" / summary.name)
        training = np.unique(data.part(0).patient_ids)
        assert data.patients_public == summary.patients_public == len(training)
        assert 0 < len(training) < 10


def test_implausible_and_unknown_cells_are_blanked_and_counted(tmp_path):
    rows = [_row(number) for number in range(40)]
    rows[0]["age"] = rows[1]["age"] = SECRET
    rows[2]["temperature_c"] = "100.4"
    rows[3]["view"] = "Axial"
    rows[4]["view"] = "frontal-unspecified"
    rows[5]["lymphocyte_count"] = "-1"
    imported = import_cohort(write_source(tmp_path / "src", rows), tmp_path / "out")
    assert imported.notices == (
        "age: blanked 2 cells outside 0 to 120 year",
        "view: blanked 1 cell outside PA, AP, AP Supine",
        "temperature_c: blanked 1 cell outside 32 to 43 degC",
        "lymphocyte_count: blanked 1 cell outside 0 to 15 10^3/uL",
    )
    missing = np.isnan(_read(tmp_path / "out", "north").features).sum(axis=0)
    assert dict(zip(FEATURES, missing, strict=True)) == {
        "age": 2,
        "sex": 0,
        "view": 2,
        "offset_days": 0,
        "temperature_c": 1,
        "po2_saturation": 0,
        "leukocyte_count": 0,
        "neutrophil_count": 20,
        "lymphocyte_count": 1,
    }


def test_missing_images_and_shared_patients_are_counted(tmp_path):
    rows = [_row(number) for number in range(40)]
    rows[0]["image"] = "lost.jpg"
    rows[39]["patientid"] = "0"
    imported = import_cohort(write_source(tmp_path / "src", rows), tmp_path / "out")
    assert imported.notices == (
        "image: 1 file not there, taken as missing",
        "patientid: 1 patient in several sites, kept in each of them",
    )
    assert [site.images for site in imported.sites] == [19, 20]


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("survival", SECRET, r"column 'survival': 1 cell \(row 7\): expected 1, 0 or blank"),
        ("went_icu", "yes", r"column 'went_icu': 1 cell \(row 7\): expected 1, 0 or blank"),
        ("age", "7731 years", r"column 'age': 1 cell \(row 7\): expected a number or blank"),
        ("patientid", "", r"column 'patientid': 1 cell \(row 7\): expected a value, found blank"),
        ("site", "../7731", r"column 'site': 1 cell \(row 7\): expected a name of letters"),
        ("image", "../7731.jpg", r"column 'image': 1 cell \(row 7\): .*outside"),
        ("image", "/etc/hostname", r"column 'image': 1 cell \(row 7\): .*outside"),
    ],
)
def test_bad_cells_name_file_row_and_column_but_no_value(tmp_path, column, cell, message):
    rows = [_row(number) for number in range(40)]
    rows[5][column] = cell
    src = write_source(tmp_path / "src", rows)
    with pytest.raises(DataError, match=message) as error:
        import_cohort(src, tmp_path / "out")
    assert "metadata.csv" in str(error.value)
    assert SECRET not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_symbolic_link_outside_is_refused(tmp_path):
    src = write_source(tmp_path / "src")
    (tmp_path / "private.jpg").write_bytes(b"x")
    (src / "images/img_0005.jpg").unlink()
    (src / "images/img_0005.jpg").symlink_to(tmp_path / "private.jpg")
    with pytest.raises(DataError, match=r"\(row 7\): .*outside"):
        import_cohort(src, tmp_path / "out")


def test_repeated_study_is_refused(tmp_path):
    rows = [_row(number) for number in range(40)]
    src = write_source(tmp_path / "src", [*rows, rows[3]])
    with pytest.raises(DataError, match=r"\(row 42\): expected each image of a patient once"):
        import_cohort(src, tmp_path / "out")


def test_missing_column_table_folder_or_rows(tmp_path):
    rows = [{k: v for k, v in _row(n).items() if k != "went_icu"} for n in range(4)]
    renamed = [row | {"went_ICU": "1"} for row in rows]
    with pytest.raises(DataError, match=r"no column 'went_icu' \(did you mean 'went_ICU'\?\)"):
        import_cohort(write_source(tmp_path / "renamed", renamed), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no such table"):
        import_cohort(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty/metadata.csv").write_text(",".join(_row(0)) + "\n")
    with pytest.raises(DataError, match="found only a header"):
        import_cohort(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="expected the folder of the data set"):
        import_cohort(tmp_path / "none", tmp_path / "out")


def test_table_that_is_not_utf8_is_a_data_error(tmp_path):
    src = write_source(tmp_path / "src")
    (src / "metadata.csv").write_bytes((src / "metadata.csv").read_bytes() + b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        import_cohort(src, tmp_path / "out")
