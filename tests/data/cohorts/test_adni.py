import csv

import numpy as np
import pytest

from medfusion.config import load_config
from medfusion.data.cohorts.adni import CLASSES, read
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError

COLUMNS = (
    "RID",
    "PTID",
    "VISCODE",
    "DX_bl",
    "AGE",
    "PTGENDER",
    "PTEDUCAT",
    "APOE4",
    "FDG",
    "AV45",
    "ABETA",
    "TAU",
    "PTAU",
    "MMSE",
    "Hippocampus",
    "IMAGEUID",
    "DX",
)
DX = ("CN", "MCI", "Dementia")


def ptid(number: int) -> str:
    return f"{number % 90:03}_S_{number:04}"


def write_source(folder, count: int = 60, **changes):
    """A fabricated table of two visits, and a file for all participants but every tenth."""
    (folder / "scans").mkdir(parents=True)
    with (folder / "ADNIMERGE.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for number in range(count):
            row = {
                "RID": number,
                "PTID": ptid(number),
                "VISCODE": "bl",
                "DX_bl": "LMCI",
                "AGE": 60 + number % 30 + 0.5,
                "PTGENDER": ("Male", "Female")[number % 2],
                "PTEDUCAT": 8 + number % 12,
                "APOE4": "NA" if number % 7 == 0 else number % 3,
                "FDG": "" if number % 2 else 1.2,
                "AV45": 1.1,
                "ABETA": (">1700", "<200", "850.5", "1900", "-4", "NA")[number % 6],
                "TAU": "239.7",
                "PTAU": "<8",
                "MMSE": 29,
                "Hippocampus": 7000,
                "IMAGEUID": 1000 + number,
                "DX": DX[number % 3] if number != 1 else "NA",
            }
            writer.writerow(row | (changes if number == 5 else {}))
            writer.writerow(row | {"VISCODE": "m12", "DX": "Dementia", "AGE": "unread"})
            if number % 10:
                name = f"ADNI_{ptid(number)}_MR_MPR_I{1000 + number}.nii.gz"
                (folder / "scans" / name).write_bytes(b"scan %d" % number)
    return folder


def run(src, out):
    return importer("adni").run(src, out, Partition(sites=1))


def test_the_baseline_visit_becomes_three_classes_with_nine_features(tmp_path):
    imported = run(write_source(tmp_path / "src"), tmp_path / "out")
    assert imported.notices == ("PTID: 6 images not there, their rows left out",)
    task = Task.load(tmp_path / "out" / "task.toml")
    assert (task.task.kind, task.labels.names) == ("multiclass", CLASSES)
    assert (task.image.dims, task.image.size) == (3, (64, 96, 64))
    names = "age sex education apoe4 abeta tau ptau fdg av45"
    assert tuple(task.features) == tuple(names.split())
    assert load_config(tmp_path / "out" / "config.toml").model.name == "hyperfusion"
    (site,) = (tmp_path / "out" / "sites").iterdir()
    studies = read_studies(open_site(site))
    assert len(studies) == studies.n_patients == 54
    # Of 60 a third each; without every tenth, and one whose diagnosis is not known.
    np.testing.assert_array_equal(np.nansum(studies.labels, axis=0), [18, 17, 18])
    assert np.isnan(studies.labels).all(axis=1).sum() == 1
    columns = dict(zip(task.features, studies.features.T, strict=True))
    assert set(columns["abeta"][~np.isnan(columns["abeta"])]) == {1700, 200, 850.5}
    assert np.isnan(columns["abeta"]).sum() == 18  # -4 and NA
    assert set(columns["ptau"]) == {8}
    assert set(columns["apoe4"][~np.isnan(columns["apoe4"])]) == {0, 1, 2}
    assert np.isnan(columns["fdg"]).sum() == 30
    text = (site / "studies.csv").read_text()
    assert "_S_" not in text
    scans = {path.read_bytes() for path in studies.images}
    assert scans == {b"scan %d" % number for number in range(60) if number % 10}


def test_no_score_and_nothing_of_another_visit_is_read(tmp_path):
    plain = read(write_source(tmp_path / "a"))
    changed = read(write_source(tmp_path / "b", MMSE=3, Hippocampus=1, DX_bl="AD", RID=99))
    assert [s.cells for s in plain.studies] == [s.cells for s in changed.studies]
    other = read(write_source(tmp_path / "c", AGE=99))
    assert [s.cells for s in plain.studies] != [s.cells for s in other.studies]


def test_of_several_scans_the_one_of_the_row_counts(tmp_path):
    src = write_source(tmp_path / "src")
    folder = src / ptid(3) / "MPRAGE"
    folder.mkdir(parents=True)
    (folder / "T1_I77.nii").write_bytes(b"later")
    wanted = next(src.glob(f"scans/*{ptid(3)}*"))
    assert wanted in [study.image for study in read(src).studies]
    wanted.rename(folder / "T1_I1003.nii")  # named by its folder now
    assert folder / "T1_I1003.nii" in [study.image for study in read(src).studies]
    (folder / "T1_I1003.nii").rename(folder / "T1_I10031.nii")
    with pytest.raises(DataError, match="several for 1 of 60"):
        read(src)


def test_an_only_scan_that_is_called_another_is_told(tmp_path):
    src = write_source(tmp_path / "src", IMAGEUID="1005.0")
    assert not [notice for notice in read(src).notices if "IMAGEUID" in notice]
    for number, name in ((3, "I77"), (4, "I10041"), (6, "scan")):  # the last names none
        path = next(src.glob(f"scans/*{ptid(number)}*"))
        path.rename(path.with_name(f"{ptid(number)}_{name}.nii.gz"))
    notices = read(src).notices
    (told,) = [notice for notice in notices if "IMAGEUID" in notice]
    assert "took 2 scans with another image number" in told
    assert "_S_" not in told
    for number, unknown in enumerate(("NA", "")):
        nameless = write_source(tmp_path / str(number), IMAGEUID=unknown)
        assert not [notice for notice in read(nameless).notices if "IMAGEUID" in notice]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DX": "MCI to Dementia"}, r"'DX'.*expected CN, NL, MCI, Dementia, AD or blank"),
        ({"ABETA": "low"}, r"'ABETA'.*expected a number"),
        ({"TAU": "~80"}, r"'TAU'.*expected a number"),
        ({"PTID": ptid(4)}, r"'PTID'.*expected one baseline visit"),
        ({"PTID": ""}, r"'PTID'.*expected a value"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
    src = write_source(tmp_path / "src", **changes)
    with pytest.raises(DataError, match=message) as told:
        read(src)
    assert "low" not in str(told.value)
    assert "~80" not in str(told.value)
    assert "_S_" not in str(told.value)


def test_without_the_baseline_or_scans_nothing_is_imported(tmp_path):
    src = write_source(tmp_path / "src")
    for path in (src / "scans").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="found none of the 60"):
        read(src)
    text = (src / "ADNIMERGE.csv").read_text()
    (src / "ADNIMERGE.csv").write_text(text.replace('"bl"', '"sc"'))
    with pytest.raises(DataError, match="expected rows of the baseline visit"):
        read(src)
