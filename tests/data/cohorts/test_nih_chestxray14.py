import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from medfusion.config import load_config
from medfusion.data.cohorts.nih_chestxray14 import FEATURES, LABELS
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError

SECRET = "7731"
_PATIENTS = 40
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]{tail}"
)


def run(src, out):
    return importer("nih-chestxray14").run(src, out, Partition(sites=1))


def _entries():
    """Two images of each patient: name, findings, visit, patient, age, sex, view."""
    findings = ["Effusion|Mass", "No Finding", "Hernia", "Pleural_Thickening"]
    return [
        [
            f"{patient:08d}_{visit:03d}.png",
            findings[patient % 4],
            str(visit),
            str(patient),
            str(30 + patient),
            "FM"[patient % 2],
            ("PA", "AP")[visit],
        ]
        for patient in range(1, 1 + _PATIENTS)
        for visit in (0, 1)
    ]


def write_official(folder, entries=None, *, sex="Patient Sex", tail=",", name="_v2020"):
    """A small fabricated folder in the official layout: images in two unpacked archives."""
    entries = _entries() if entries is None else entries
    rng = np.random.default_rng(0)
    for i, entry in enumerate(entries):
        place = folder / f"images_{1 + i % 2:03d}" / "images"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(place / entry[0])
    lines = [HEADER.format(sex=sex, tail=tail)]
    lines += [",".join([*entry, "2682", "2749", "0.143", "0.143"]) + tail for entry in entries]
    (folder / f"Data_Entry_2017{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_prepared(folder):
    """The same images and facts as a table with a column for each label."""
    write_official(folder)
    (folder / "images").mkdir()
    for path in folder.glob("images_*/images/*.png"):
        path.rename(folder / "images" / path.name)
    for path in folder.glob("images_*"):
        shutil.rmtree(path)
    (folder / "Data_Entry_2017_v2020.csv").unlink()
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "source_split", "patient_id", "age", "sex", "view", *LABELS])
        for name, findings, _, patient, age, sex, view in _entries():
            labels = [int(label in findings.split("|")) for label in LABELS]
            writer.writerow([f"images/{name}", "test", patient, age, sex, view, *labels])
    return folder


def write_lists(folder, train, test):
    (folder / "train_val_list.txt").write_text("\n".join(train) + "\n")
    (folder / "test_list.txt").write_text("\n".join(test))


def _studies(out):
    return read_studies(open_site(out / "sites" / "site_1"))


def _by_age(out):
    """Study of each age, which tells the source row."""
    studies = _studies(out)
    return {int(age): i for i, age in enumerate(studies.features[:, 0])}, studies


def test_official_table_gives_labels_features_and_images(tmp_path):
    entries = _entries()[::2]  # one image of each patient, so that age tells the row
    src = write_official(tmp_path / "src", entries)
    imported = run(src, tmp_path / "out")
    assert imported.notices == ()
    task = Task.load(tmp_path / "out/task.toml")
    assert (task.labels.names, tuple(task.features)) == (LABELS, tuple(FEATURES))
    assert task.image.size == (224, 224)
    assert task.split.column is None
    rows, studies = _by_age(tmp_path / "out")
    assert len(rows) == len(studies) == _PATIENTS
    files = {path.name: path for path in src.rglob("*.png")}
    for name, findings, _, _, age, sex, _ in entries:
        i = rows[int(age)]
        present = {label for label, cell in zip(LABELS, studies.labels[i], strict=True) if cell}
        assert present == set(findings.split("|")) - {"No Finding"}
        assert studies.features[i, 1:].tolist() == [sex == "M", 0.0]
        assert studies.images[i].read_bytes() == files[name].read_bytes()


def test_both_layouts_give_the_same_studies(tmp_path):
    run(write_official(tmp_path / "a"), tmp_path / "official")
    run(write_prepared(tmp_path / "b"), tmp_path / "prepared")
    tables = [
        (tmp_path / name / "sites/site_1/studies.csv").read_text()
        for name in ("official", "prepared")
    ]
    assert tables[0] == tables[1]
    assert Task.load(tmp_path / "prepared/task.toml").image.size == (64, 64)
    assert load_config(tmp_path / "prepared/config.toml").run.rounds == 40
    studies = _studies(tmp_path / "prepared")
    assert (len(studies), studies.n_patients) == (2 * _PATIENTS, _PATIENTS)
    assert "00000001" not in tables[0]


def test_first_release_with_ages_in_years_months_days(tmp_path):
    entries = _entries()
    for entry, age in zip(entries, ["058Y", "006M", "073D"], strict=False):
        entry[4] = age
    entries[3][4], entries[4][4] = "414", "148Y"
    src = write_official(tmp_path / "src", entries, sex="Patient Gender", tail="", name="")
    imported = run(src, tmp_path / "out")
    assert imported.notices == ("Patient Age: blanked 2 cells outside 0 to 120 year",)
    ages = _studies(tmp_path / "out").features[:, 0]
    assert np.isnan(ages).sum() == 2
    assert sorted(ages[ages < 30].tolist()) == [0.1999, 0.5]
    assert 58 in ages


def test_newest_table_is_read(tmp_path):
    src = write_official(tmp_path / "src")
    (src / "Data_Entry_2017.csv").write_text("old\n")
    assert run(src, tmp_path / "out").sites[0].studies == 2 * _PATIENTS


def test_lists_become_the_split(tmp_path):
    src = write_official(tmp_path / "src")
    names = [entry[0] for entry in _entries()]
    write_lists(src, names[:60], names[60:])
    run(src, tmp_path / "out")
    studies = _studies(tmp_path / "out")
    assert Task.load(tmp_path / "out/task.toml").split.column == "split"
    # The first 60 images are of patients 1 to 30, whose age is 31 to 60.
    assert studies.split_column.tolist() == np.where(studies.features[:, 0] <= 60, 0, 2).tolist()


def test_subset_of_the_images_leaves_rows_out(tmp_path):
    src = write_official(tmp_path / "src")
    for name in ("00000001_000.png", "00000001_001.png", "00000002_000.png"):
        next(src.rglob(name)).unlink()
    imported = run(src, tmp_path / "out")
    assert imported.notices == ("Image Index: 3 images not there, their rows left out",)
    studies = _studies(tmp_path / "out")
    assert len(studies) == 2 * _PATIENTS - 3
    assert 31 not in studies.features[:, 0]


def test_no_image_is_an_error(tmp_path):
    src = write_official(tmp_path / "src")
    for path in src.glob("images_*"):
        shutil.rmtree(path)
    with pytest.raises(DataError, match="found none of the 80 that the table names"):
        run(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "cell", "message"),
    [
        (1, SECRET, r"column 'Finding Labels': 1 cell \(row 7\): expected 'No Finding' alone"),
        (1, "No Finding|Mass", r"column 'Finding Labels': 1 cell \(row 7\): expected"),
        (1, "", r"column 'Finding Labels': 1 cell \(row 7\): expected"),
        (3, "", r"column 'Patient ID': 1 cell \(row 7\): expected a value, found blank"),
        (4, "7731 years", r"column 'Patient Age': 1 cell \(row 7\): expected a number"),
        (0, "00000001_000.png", r"column 'Image Index': 1 cell \(row 7\): .*found it again"),
    ],
)
def test_bad_cells_name_file_row_and_column_but_no_value(tmp_path, place, cell, message):
    entries = _entries()
    entries[5][place] = cell
    src = write_official(tmp_path / "src", entries)
    with pytest.raises(DataError, match=message) as error:
        run(src, tmp_path / "out")
    assert "Data_Entry_2017_v2020.csv" in str(error.value)
    assert SECRET not in str(error.value)


def test_split_lists_that_do_not_fit(tmp_path):
    src = write_official(tmp_path / "src")
    names = [entry[0] for entry in _entries()]
    write_lists(src, names[:60], names[59:])
    with pytest.raises(DataError, match="1 image in both lists"):
        run(src, tmp_path / "out")
    write_lists(src, names[:60], names[61:])
    with pytest.raises(DataError, match=r"\(row 62\): expected an image of train_val_list.txt or"):
        run(src, tmp_path / "out")
    (src / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"found no test_list\.txt"):
        run(src, tmp_path / "out")


def test_folder_without_a_table_or_a_sex(tmp_path):
    with pytest.raises(DataError, match="found neither"):
        run(tmp_path, tmp_path / "out")
    src = write_official(tmp_path / "src", sex="Gender")
    with pytest.raises(DataError, match="expected a column 'Patient Sex' or 'Patient Gender'"):
        run(src, tmp_path / "out")
