import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from medfusion.data.cohorts.chexpert import FEATURES, LABELS, OBSERVATIONS
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError

SECRET = "7731"
_TRAINING = 40


def run(src, out):
    return importer("chexpert").run(src, out, Partition(sites=1))


def _row(part, number, view="frontal", **changes):
    path = f"{part}/patient{number:05d}/study1/view1_{view}.jpg"
    marks = dict.fromkeys(OBSERVATIONS.values(), "")
    marks |= {"Edema": ("1.0", "0.0", "-1.0", "")[number % 4], "Support Devices": "1.0"}
    facts = {
        "Path": f"CheXpert-v1.0-small/{path}",
        "Sex": ("Female", "Male")[number % 2],
        "Age": str(20 + number),  # tells the row
        "Frontal/Lateral": view.title(),
        "AP/PA": ("PA", "AP")[number % 2] if view == "frontal" else "",
    }
    return facts | marks | changes


def rows():
    """Forty patients in train, five of them with a lateral image too, and ten in valid."""
    train = [_row("train", number) for number in range(_TRAINING)]
    train += [_row("train", number, "lateral") for number in range(5)]
    valid = [_row("valid", number) for number in range(_TRAINING, _TRAINING + 10)]
    return {"train.csv": train, "valid.csv": valid}


def write_source(folder, content=None):
    """A small fabricated folder in the layout of the data set."""
    content = rows() if content is None else content
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, table in content.items():
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        for row in table:
            path = folder / row["Path"].removeprefix("CheXpert-v1.0-small/")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(path)
    return folder


def _read(out):
    studies = read_studies(open_site(out / "sites/site_1"))
    return studies, studies.features[:, 0].astype(int) - 20


def test_frontal_images_become_studies(tmp_path):
    src = write_source(tmp_path / "renamed by the user")
    imported = run(src, tmp_path / "out")
    assert imported.notices == ("train.csv, Frontal/Lateral: 5 images not frontal, left out",)
    task = Task.load(tmp_path / "out/task.toml")
    assert (task.labels.names, tuple(task.features)) == (LABELS, tuple(FEATURES))
    assert task.image.size == (224, 224)
    studies, numbers = _read(tmp_path / "out")
    assert sorted(numbers) == list(range(_TRAINING + 10))
    assert studies.n_patients == _TRAINING + 10
    np.testing.assert_array_equal(studies.features[:, 1:], np.stack([numbers % 2] * 2, axis=1))
    assert studies.split_column.tolist() == np.where(numbers < _TRAINING, 0, 2).tolist()
    for number, image in zip(numbers, studies.images, strict=True):
        expected = next(src.rglob(f"patient{number:05d}/study1/view1_frontal.jpg"))
        assert image.read_bytes() == expected.read_bytes()
    assert "patient000" not in (tmp_path / "out/sites/site_1/studies.csv").read_text()


def test_blank_is_absent_and_uncertain_is_unknown(tmp_path):
    run(write_source(tmp_path / "src"), tmp_path / "out")
    studies, numbers = _read(tmp_path / "out")
    edema = np.array([1, 0, np.nan, 0])[numbers % 4]
    np.testing.assert_array_equal(studies.labels[:, LABELS.index("Edema")], edema)
    assert (studies.labels[:, LABELS.index("Support_Devices")] == 1).all()
    assert (studies.labels[:, LABELS.index("No_Finding")] == 0).all()


def test_without_valid_patients_are_split_by_hash(tmp_path):
    content = rows()
    del content["valid.csv"]
    imported = run(write_source(tmp_path / "src", content), tmp_path / "out")
    assert Task.load(tmp_path / "out/task.toml").split.column is None
    assert 20 < imported.sites[0].patients_public < _TRAINING


def test_unknown_age_and_sex_are_blank(tmp_path):
    content = rows()
    content["train.csv"][3] |= {"Age": "0", "Sex": "Unknown"}
    imported = run(write_source(tmp_path / "src", content), tmp_path / "out")
    assert "train.csv, Age: blanked 1 cell outside 18 to 100 year" in imported.notices
    studies = read_studies(open_site(tmp_path / "out/sites/site_1"))
    assert np.isnan(studies.features).sum(axis=0).tolist() == [1, 1, 0]


def test_images_that_are_absent_are_left_out(tmp_path):
    src = write_source(tmp_path / "src")
    for number in (2, 7):
        shutil.rmtree(src / f"train/patient{number:05d}")
    imported = run(src, tmp_path / "out")
    assert "train.csv, Path: 2 images not there, their rows left out" in imported.notices
    assert not {2, 7} & set(_read(tmp_path / "out")[1])
    shutil.rmtree(src / "train")
    with pytest.raises(DataError, match=r"train\.csv.*found none of the 40"):
        run(src, tmp_path / "none")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("Path", f"../../{SECRET}.jpg", r"column 'Path': 1 cell \(row 4\): expected .*train"),
        ("Path", _row("train", 0)["Path"], r"column 'Path': 1 cell \(row 4\): .*found it again"),
        ("Frontal/Lateral", "", r"column 'Frontal/Lateral': 1 cell \(row 4\): expected Frontal"),
        ("Age", "7731 years", r"column 'Age': 1 cell \(row 4\): expected a number"),
        ("Edema", SECRET, r"column 'Edema': 1 cell \(row 4\): expected 1, 0, -1 or blank"),
    ],
)
def test_bad_cells_name_file_row_and_column_but_no_value(tmp_path, column, cell, message):
    src = write_source(tmp_path / "src")
    table = rows()["train.csv"]
    table[2][column] = cell
    with (src / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    with pytest.raises(DataError, match=message) as error:
        run(src, tmp_path / "out")
    assert "train.csv" in str(error.value)
    assert SECRET not in str(error.value)


def test_folder_without_the_table(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv: no such table"):
        run(tmp_path, tmp_path / "out")
