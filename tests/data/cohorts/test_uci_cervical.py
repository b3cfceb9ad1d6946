import csv
import hashlib

import numpy as np
import pytest

from medfusion.config import load_config
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.cohorts.uci_cervical import FEATURES, LABELS, TABLE
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError

SECRET = "7731"  # stands for a value that no message may hold


def _row(number, **changes):
    row = dict.fromkeys(FEATURES, "0.0")
    row |= {"Age": str(20 + number % 50), "First sexual intercourse": "17.0"}
    row |= {
        "Number of sexual partners": str(1 + number // 50),
        "STDs": "1.0" if number % 5 else "?",
    }
    row |= {"STDs: Time since first diagnosis": "?", "STDs: Time since last diagnosis": "?"}
    row |= dict.fromkeys(LABELS, "0") | {"Biopsy": str(int(number % 4 == 0))}
    return row | changes


def write_cervical(folder, rows=None):
    """A small fabricated folder in the layout of the data set."""
    rows = [_row(number) for number in range(90)] if rows is None else rows
    folder.mkdir(parents=True)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run(src, out, sites=2):
    return importer("uci-cervical").run(src, out, Partition(sites=sites))


def _all_studies(out):
    return [read_studies(open_site(folder)) for folder in sorted((out / "sites").iterdir())]


def test_every_row_is_a_patient_with_32_inputs_and_four_labels(tmp_path):
    imported = run(write_cervical(tmp_path / "src"), tmp_path / "out")
    assert sum(site.patients for site in imported.sites) == 90
    assert [site.name for site in imported.sites] == ["site_1", "site_2"]
    assert imported.notices == ()
    task = Task.load(tmp_path / "out" / "task.toml")
    assert len(task.features) == 32
    assert task.labels.names == LABELS
    config = load_config(tmp_path / "out" / "config.toml")
    training = config.training
    assert (config.run.rounds, training.schedule, training.loss.name) == (40, "cosine", "focal")


def test_no_target_is_an_input():
    assert not set(FEATURES) & set(LABELS)
    assert not any("biopsy" in name.lower() or "schiller" in name.lower() for name in FEATURES)


def test_cells_keep_their_meaning(tmp_path):
    run(write_cervical(tmp_path / "src"), tmp_path / "out", sites=1)
    (studies,) = _all_studies(tmp_path / "out")
    names = list(FEATURES)
    age, partners = (
        studies.features[:, names.index(name)] for name in ("Age", "Number of sexual partners")
    )
    number = (age - 20 + 50 * (partners - 1)).astype(int)
    assert sorted(number) == list(range(90))
    biopsy = studies.labels[:, LABELS.index("Biopsy")]
    assert np.array_equal(biopsy, number % 4 == 0)
    ill = studies.features[:, names.index("STDs")]
    assert np.array_equal(np.isnan(ill), number % 5 == 0)  # the question marks
    assert set(ill[number % 5 > 0]) == {1}
    assert np.isnan(studies.features[:, names.index("STDs: Time since last diagnosis")]).all()


def test_the_file_itself_will_do(tmp_path):
    src = write_cervical(tmp_path / "src")
    assert run(src / TABLE, tmp_path / "a") == run(src, tmp_path / "b")


def test_import_is_the_same_whatever_the_order_of_rows(tmp_path):
    rows = [_row(number) for number in range(90)] + [_row(3), _row(3)]
    hashes = []
    for name, order in [("a", rows), ("b", rows[::-1])]:
        run(write_cervical(tmp_path / name, order), tmp_path / f"out-{name}")
        digest = hashlib.sha256()
        for path in sorted((tmp_path / f"out-{name}").rglob("*")):
            digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
        hashes.append(digest.hexdigest())
    assert hashes[0] == hashes[1]


def test_repeated_rows_are_patients_of_their_own_and_counted(tmp_path):
    rows = [_row(number) for number in range(90)] + [_row(3), _row(3), _row(4)]
    imported = run(write_cervical(tmp_path / "src", rows), tmp_path / "out")
    assert imported.notices == ("3 rows the same as an earlier one, kept as patients of their own",)
    assert sum(site.patients for site in imported.sites) == 93


def test_sites_and_alpha_deal_the_patients(tmp_path):
    src = write_cervical(tmp_path / "src")
    counts = [
        [site.patients for site in importer("uci-cervical").run(src, tmp_path / name, deal).sites]
        for name, deal in [
            ("even", Partition(sites=3, alpha=1e5)),
            ("skewed", Partition(sites=3, alpha=0.1)),
        ]
    ]
    assert [sum(one) for one in counts] == [90, 90]
    assert max(counts[0]) - min(counts[0]) <= 3
    assert max(counts[1]) - min(counts[1]) > 10


def test_implausible_cells_are_blanked_and_counted(tmp_path):
    rows = [_row(number) for number in range(90)]
    rows[0]["Age"] = SECRET
    rows[1]["IUD (years)"] = "-1"
    imported = run(write_cervical(tmp_path / "src", rows), tmp_path / "out")
    assert imported.notices == (
        "Age: blanked 1 cell outside 10 to 106 year",
        "IUD (years): blanked 1 cell outside 0 to 32 year",
    )


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("Smokes", SECRET, r"column 'Smokes': 1 cell \(row 7\): expected 1, 0 or blank"),
        ("Biopsy", "yes", r"column 'Biopsy': 1 cell \(row 7\): expected 1, 0 or blank"),
        ("Age", "7731 years", r"column 'Age': 1 cell \(row 7\): expected a number or blank"),
    ],
)
def test_bad_cells_name_file_row_and_column_but_no_value(tmp_path, column, cell, message):
    rows = [_row(number) for number in range(90)]
    rows[5][column] = cell
    with pytest.raises(DataError, match=message) as error:
        run(write_cervical(tmp_path / "src", rows), tmp_path / "out")
    assert TABLE in str(error.value)
    assert SECRET not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_missing_column_is_named(tmp_path):
    rows = [{k: v for k, v in _row(n).items() if k != "Dx:HPV"} for n in range(90)]
    with pytest.raises(DataError, match="no column 'Dx:HPV'"):
        run(write_cervical(tmp_path / "src", rows), tmp_path / "out")
