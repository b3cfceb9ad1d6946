import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from medfusion.config import load_config
from medfusion.data.cohorts.fed_heart import FEATURES, SITES, published_test_part
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST, TRAIN
from medfusion.data.task import Task
from medfusion.errors import DataError, UsageError
from medfusion.training.recipes import RECIPES

SECRET = "7731"  # stands for a value that no message may hold
COLUMNS = (*FEATURES, "slope", "ca", "thal", "num")


def _row(number, **changes):
    """One patient, whose age tells which row it is."""
    row = {
        "age": f"{30 + number / 2}",
        "sex": "1.0" if number % 2 else "0",
        "cp": str(1 + number % 4),
        "trestbps": "130",
        "chol": "250.0",
        "fbs": "0",
        "restecg": str(number % 3),
        "thalach": "150",
        "exang": "1",
        "oldpeak": "-.5",
        "slope": "?",
        "ca": "?",
        "thal": "3.0",
        "num": str(number % 5),
    }
    return row | changes


def write_heart(folder, **rows):
    """A small fabricated folder in the layout of the data set."""
    folder.mkdir(parents=True)
    for site in SITES:
        lines = [_row(number) for number in range(40)] if site not in rows else rows[site]
        text = "".join(",".join(row[name] for name in COLUMNS) + "\n" for row in lines)
        (folder / f"processed.{site}.data").write_text(text)
    return folder


def run(src, out):
    return importer("fed-heart").run(src, out)


def test_hospitals_become_sites_with_values_as_they_are(tmp_path):
    imported = run(write_heart(tmp_path / "src"), tmp_path / "out")
    assert [site.name for site in imported.sites] == list(SITES)
    assert imported.notices == ()
    task = Task.load(tmp_path / "out" / "task.toml")
    assert list(task.features) == list(FEATURES)
    assert task.labels.names == ("heart_disease",)
    config = load_config(tmp_path / "out" / "config.toml")
    assert config.model.name == "logistic"
    assert config.training.recipe == "private"
    assert config.training.learning_rate == RECIPES["private"]["training"]["learning_rate"]
    for site in SITES:
        data = load_site_data(tmp_path / "out" / "sites" / site)
        for values, label in zip(data.studies.features, data.studies.labels[:, 0], strict=True):
            found = dict(zip(FEATURES, values, strict=True))
            number = round(2 * (found["age"] - 30))
            assert found["sex"] == number % 2  # F, M
            assert found["cp"] == number % 4
            assert found["restecg"] == number % 3
            assert (found["chol"], found["oldpeak"], found["exang"]) == (250, -0.5, 1)
            assert label == (number % 5 > 0)


def test_patients_with_gaps_in_the_inputs_are_left_out(tmp_path):
    rows = [_row(number) for number in range(40)]
    for number, name in enumerate((*FEATURES, "num")):
        rows[number][name] = "?"
    imported = run(write_heart(tmp_path / "src", va=rows), tmp_path / "out")
    assert imported.notices == ("va: left out 11 of 40 patients with gaps",)
    assert [site.patients for site in imported.sites] == [40, 40, 40, 29]


def test_a_zero_that_means_not_measured_is_missing(tmp_path):
    rows = [_row(number, chol="0") for number in range(40)]
    imported = run(write_heart(tmp_path / "src", switzerland=rows), tmp_path / "out")
    assert imported.notices == ("switzerland, chol: blanked 40 cells outside 50 to 650 mg/dL",)
    data = load_site_data(tmp_path / "out" / "sites" / "switzerland")
    missing = dict(zip(FEATURES, np.isnan(data.studies.features).sum(axis=0), strict=True))
    assert missing == dict.fromkeys(FEATURES, 0) | {"chol": 40}


def test_what_lies_beyond_a_public_range_is_set_to_its_end(tmp_path):
    rows = [_row(number) for number in range(40)]
    rows[4] |= {"age": "19", "trestbps": "230", "oldpeak": "-2.6"}
    rows[5] |= {"age": "101", "thalach": "60.5", "oldpeak": "6.2"}
    imported = run(write_heart(tmp_path / "src", va=rows), tmp_path / "out")
    assert imported.notices == ("va, age: blanked 1 cell outside 18 to 100 year",)
    data = load_site_data(tmp_path / "out" / "sites" / "va")
    columns = dict(zip(FEATURES, data.studies.features.T, strict=True))
    assert sorted(columns["age"])[0] == 30  # of the 19 and, as before, of the first row
    assert np.isnan(columns["age"]).sum() == 1
    assert columns["trestbps"].max() == 180
    assert columns["thalach"].min() == 70
    assert (columns["oldpeak"].min(), columns["oldpeak"].max()) == (-1, 4)
    assert (columns["oldpeak"] == -0.5).sum() == 38


def test_repeated_rows_are_patients_of_their_own_and_counted_by_site(tmp_path):
    rows = [_row(number) for number in range(40)]
    src = write_heart(tmp_path / "src", hungarian=[*rows, _row(3), _row(3)], va=[*rows, _row(4)])
    imported = run(src, tmp_path / "out")
    assert imported.notices == (
        "hungarian: 2 rows the same as an earlier one, kept as patients of their own",
        "va: 1 row the same as an earlier one, kept as patients of their own",
    )
    assert [site.patients for site in imported.sites] == [40, 42, 40, 41]


def _reference(ill):
    """Test rows as FLamby takes them."""
    counts = np.bincount(ill, minlength=2)
    _, test = train_test_split(
        np.arange(len(ill)),
        test_size=1.0 - 0.66,
        train_size=0.66,
        random_state=43,
        stratify=ill if counts.min() > 2 else None,
    )
    return sorted(test)


def test_the_split_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    cases = [rng.random(n) < share for n in range(9, 320, 7) for share in (0.02, 0.25, 0.5, 0.8)]
    cases.append(np.arange(101) < 50)
    cases += [np.arange(2 * n) < n for n in (5, 11, 25, 50)]  # equal classes draw lots
    for ill in cases:
        assert np.flatnonzero(published_test_part(ill)).tolist() == _reference(ill.astype(int))


def test_the_split_is_written_for_the_rows_that_are_kept(tmp_path):
    rows = [_row(number) for number in range(60)]
    rows[7]["chol"] = "?"
    imported = run(write_heart(tmp_path / "src", cleveland=rows), tmp_path / "out")
    kept = [number for number in range(60) if number != 7]
    test = [kept[i] for i in _reference(np.array([int(number % 5 > 0) for number in kept]))]
    data = load_site_data(tmp_path / "out" / "sites" / "cleveland")
    ages = data.studies.features[:, 0]
    assert sorted(2 * (ages[data.split == TEST] - 30)) == test
    assert (data.split == TRAIN).sum() == 59 - len(test)
    assert imported.sites[0].patients_public == 59 - len(test)


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("num", "5", r"column 'num': 1 cell \(row 6\): expected 0 to 4"),
        ("cp", SECRET, r"column 'cp': 1 cell \(row 6\): expected 1 to 4"),
        ("sex", "M", r"column 'sex': 1 cell \(row 6\): expected 0 to 1"),
        ("fbs", "2", r"column 'fbs': 1 cell \(row 6\): expected 1, 0 or blank"),
        ("age", "7731y", r"column 'age': 1 cell \(row 6\): expected a number"),
        ("thal", "3,7731", r"expected rows of 14 cells, found another number in row 6"),
    ],
)
def test_bad_cells_name_file_row_and_column_but_no_value(tmp_path, column, cell, message):
    rows = [_row(number) for number in range(40)]
    rows[5][column] = cell
    with pytest.raises(DataError, match=message) as error:
        run(write_heart(tmp_path / "src", hungarian=rows), tmp_path / "out")
    assert "processed.hungarian.data" in str(error.value)
    assert SECRET not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_an_absent_or_empty_file_is_named(tmp_path):
    src = write_heart(tmp_path / "src")
    (src / "processed.va.data").write_text("\n")
    with pytest.raises(DataError, match=r"processed\.va\.data: expected rows .* found no rows"):
        run(src, tmp_path / "out")
    (src / "processed.va.data").unlink()
    with pytest.raises(DataError, match=r"processed\.va\.data: no such file"):
        run(src, tmp_path / "out")


def test_hospitals_are_not_dealt_out_again(tmp_path):
    src = write_heart(tmp_path / "src")
    with pytest.raises(UsageError, match="brings its own sites"):
        importer("fed-heart").run(src, tmp_path / "out", Partition())
