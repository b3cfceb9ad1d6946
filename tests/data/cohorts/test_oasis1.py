import csv

import numpy as np
import pytest

from medfusion.config import load_config
from medfusion.data.cohorts.oasis1 import READERS, read
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError

COLUMNS = (
    "ID",
    "M/F",
    "Hand",
    "Age",
    "Educ",
    "SES",
    "MMSE",
    "CDR",
    "eTIV",
    "nWBV",
    "ASF",
    "subject",
)
SHAPE = (8, 9, 8)


def write_oasis(folder, count=60, **changes):
    """A fabricated folder in the layout of the prepared set; subject 0 has two scans."""
    folder.mkdir(parents=True)
    ids = []
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number in range(count):
            subject = max(number - 1, 0)
            age = 18 + (7 * subject) % 78
            old = age >= 60
            ids.append(f"OAS1_{subject:04}_MR{2 if number == 1 else 1}")
            row = dict(zip(COLUMNS, [""] * len(COLUMNS), strict=True))
            row |= {"ID": ids[-1], "subject": f"OAS1_{subject:04}", "M/F": "FM"[number % 2]}
            row |= {"Age": str(age), "CDR": "0.5" if old and number % 2 else "0.0"}
            row |= {"Educ": "2.0" if old else "", "nWBV": "0.7"}
            writer.writerow(row | (changes if number == 5 else {}))
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    np.savez(folder / "scans.npz", volumes=volumes, ids=np.array(ids))
    return folder


def run(src, out, name="oasis1", sites=2, alpha=0.5):
    return importer(name).run(src, out, Partition(sites=sites, alpha=alpha))


def all_studies(out):
    return [read_studies(open_site(folder)) for folder in sorted((out / "sites").iterdir())]


def test_ages_scans_and_subjects_take_their_way(tmp_path):
    src = write_oasis(tmp_path / "src")
    volumes = np.load(src / "scans.npz")["volumes"]
    imported = run(src, tmp_path / "out")
    assert sum(site.patients for site in imported.sites) == 59
    assert sum(site.images for site in imported.sites) == 60
    task = Task.load(tmp_path / "out" / "task.toml")
    assert (task.task.kind, task.labels.range, tuple(task.features)) == (
        "regression",
        (18, 98),
        ("sex",),
    )
    assert load_config(tmp_path / "out" / "config.toml").model.name == "hyperfusion"
    studies = all_studies(tmp_path / "out")
    twice = [s for s in studies if len(s) > s.n_patients]
    assert len(twice) == 1  # both scans of a subject are at one site
    paths = [path for s in studies for path in s.images]
    found = {np.load(path)["volume"].tobytes() for path in paths}
    # Stored towards the left, brought to the right as NIfTI files are.
    assert found == {volume[::-1].tobytes() for volume in volumes}
    text = (tmp_path / "out" / "sites" / "site_1" / "studies.csv").read_text()
    assert "OAS1" not in text


def test_small_alpha_gives_sites_of_differing_ages(tmp_path):
    src = write_oasis(tmp_path / "src", count=100)
    spreads = []
    for alpha in (0.02, 1000.0):
        out = tmp_path / f"out{alpha}"
        run(src, out, sites=3, alpha=alpha)
        spreads.append(np.std([s.labels.mean() for s in all_studies(out)]))
    assert spreads[0] > 3 * spreads[1]


def test_each_target_has_the_features_that_do_not_give_it_away(tmp_path):
    src = write_oasis(tmp_path / "src", count=120)
    run(src, tmp_path / "sex", "oasis1-sex")
    task = Task.load(tmp_path / "sex" / "task.toml")
    assert (task.labels.names, tuple(task.features)) == (("male",), ("age",))
    run(src, tmp_path / "dementia", "oasis1-dementia")
    task = Task.load(tmp_path / "dementia" / "task.toml")
    assert task.labels.names == ("demented",)
    assert tuple(task.features) == ("age", "sex", "education", "ses")
    for studies in all_studies(tmp_path / "dementia"):
        assert studies.features[:, 0].min() >= 60
        assert set(np.unique(studies.labels)) == {0.0, 1.0}


@pytest.mark.parametrize("target", ["age", "sex", "dementia"])
def test_nothing_derived_from_the_scan_or_the_diagnosis_is_read(tmp_path, target):
    plain = read(write_oasis(tmp_path / "a", count=80), target=target)
    changes = {"MMSE": "1", "nWBV": "0.1", "ASF": "9", "eTIV": "9"}
    changed = read(write_oasis(tmp_path / "b", count=80, **changes), target=target)
    assert [s.cells for s in plain.studies] == [s.cells for s in changed.studies]


def test_scans_may_be_nifti_files_and_rows_without_one_are_left_out(tmp_path):
    src = write_oasis(tmp_path / "src")
    (src / "scans.npz").unlink()
    (src / "below").mkdir()
    for number in range(2, 50):
        (src / "below" / f"OAS1_{number:04}_MR1_t88.nii.gz").write_bytes(b"scan")
    imported = run(src, tmp_path / "out")
    assert "12 images not there" in imported.notices[0]
    paths = [path for s in all_studies(tmp_path / "out") for path in s.images]
    assert len(paths) == 48
    assert {path.name[-7:] for path in paths} == {".nii.gz"}


def test_what_cannot_be_read_is_refused(tmp_path):
    src = write_oasis(tmp_path / "a", Age="secret")
    with pytest.raises(DataError, match=r"'Age'.*expected a number") as told:
        read(src)
    assert "secret" not in str(told.value)
    src = write_oasis(tmp_path / "b")
    volumes = np.load(src / "scans.npz")["volumes"]
    np.savez(src / "scans.npz", volumes=volumes.astype(float), ids=np.arange(60).astype(str))
    with pytest.raises(DataError, match="eight-bit"):
        read(src)
    np.savez(src / "scans.npz", other=volumes)
    with pytest.raises(DataError, match="expected arrays 'volumes'"):
        read(src)


def test_every_reader_is_registered():
    assert all(importer(name) for name in READERS)
