"""Importer of the UCI heart disease data (CC BY 4.0) of four hospitals, as FLamby uses them.

Sources: Detrano et al., *International application of a new probability algorithm for the
diagnosis of coronary artery disease*, American Journal of Cardiology 64:304-310, 1989;
archive.ics.uci.edu/dataset/45. Ogier du Terrail et al., *FLamby: datasets and benchmarks for
cross-silo federated learning in realistic healthcare settings*, NeurIPS 2022
(``fed_heart_disease``). Nothing of them ships with MedFusion; the user points to a copy.

The folder holds ``processed.NAME.data`` for each hospital: no header, 14 columns, ``?`` for
missing. Patients, inputs, label (any narrowing: ``num`` above 0) and the split into training
and test are FLamby's, so that figures compare: without ``slope``, ``ca`` and ``thal``, which
most hospitals lack, and without the patients who lack anything else. Values keep their units.
What no patient has, such as a cholesterol or blood pressure of 0 that stands for not measured,
becomes missing. What lies beyond a feature's public range is set to its nearer end: the ranges
are narrow, because they scale the inputs, and privacy pays for spans that hardly a patient
lies in. FLamby scales with means and deviations learned from patients.
"""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.row_patients import repeated_rows, row_pseudonyms
from medfusion.data.cohorts.source_table import (
    Cells,
    binary_cells,
    feature_cells,
    mark,
    refuse,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.columns import number_of
from medfusion.data.findings import rows_text
from medfusion.data.table import Table, decode_text
from medfusion.data.task import BinaryFeature, CategoricalFeature, Feature, NumericFeature
from medfusion.errors import DataError

NAME = "fed-heart"
SITES = ("cleveland", "hungarian", "switzerland", "va")
LABEL = "heart_disease"

# Public ranges: where adults referred for chest pain lie by clinical knowledge. Resting pressure
# from hypotension to a hypertensive crisis, a peak heart rate up to that of a young adult, ST
# depression up to a severe one.
FEATURES: dict[str, Feature] = {
    "age": NumericFeature(kind="numeric", low=30, high=80, unit="year"),
    "sex": CategoricalFeature(kind="categorical", values=("F", "M")),
    "cp": CategoricalFeature(
        kind="categorical", values=("typical", "atypical", "non_anginal", "asymptomatic")
    ),
    "trestbps": NumericFeature(kind="numeric", low=90, high=180, unit="mmHg"),
    "chol": NumericFeature(kind="numeric", low=100, high=400, unit="mg/dL"),
    "fbs": BinaryFeature(kind="binary"),
    "restecg": CategoricalFeature(
        kind="categorical", values=("normal", "st_t_abnormality", "lv_hypertrophy")
    ),
    "thalach": NumericFeature(kind="numeric", low=70, high=200, unit="1/min"),
    "exang": BinaryFeature(kind="binary"),
    "oldpeak": NumericFeature(kind="numeric", low=-1, high=4, unit="mm"),
}
# Beyond these a number is a mistake, or stands for something else.
_POSSIBLE: dict[str, tuple[float, float]] = {
    "age": (18, 100),
    "trestbps": (60, 260),
    "chol": (50, 650),
    "thalach": (40, 230),
    "oldpeak": (-5, 10),
}
_FIRST_CODE = {"sex": 0, "cp": 1, "restecg": 0}  # the file's number of the first category
_LEFT_OUT = ("slope", "ca", "thal")
_OUTCOME = "num"
_COLUMNS = (*FEATURES, *_LEFT_OUT, _OUTCOME)
_TRAIN, _SPLIT_SEED = 0.66, 43  # FLamby's


def read(src: Path) -> Cohort:
    """Read the four files in the folder ``src``; the sites are the hospitals.

    Each row is a patient with one study, named by a pseudonym that depends on the site and the
    cells of the row alone; a notice counts a site's rows that repeat another one.

    Raises
    ------
    DataError
        If a file is absent, has another number of columns, or holds text in place of a number.
    """
    notices: list[str] = []
    studies = [study for site in SITES for study in _read_site(src, site, notices)]
    return Cohort(
        task=task_sections(NAME, features=FEATURES, labels=(LABEL,), split=True),
        studies=studies,
        notices=tuple(notices),
        model="logistic",  # as FLamby; the data are small
        rounds=20,
        batch_size=None,
        learning_rate=None,
        training={"recipe": "private"},
        # Ten noisy histograms cost more than the cut points are worth to so few patients.
        sections={
            "selection": {"method": "none"},
            "privacy": {"shares": {"selection": 0.1, "training": 0.8, "metrics": 0.1}},
        },
    )


def _read_site(src: Path, site: str, notices: list[str]) -> list[Study]:
    table, dropped = _without_gaps(_read_table(src / f"processed.{site}.data"))
    if dropped:
        notices.append(f"{site}: left out {dropped} of {len(table) + dropped} patients with gaps")
    told: list[str] = []
    columns = {name: _cells(table, name, feature, told) for name, feature in FEATURES.items()}
    ill = _outcome(table)
    columns[LABEL] = ["1" if one else "0" for one in ill]
    columns["split"] = ["test" if one else "train" for one in published_test_part(ill)]
    rows = list(zip(*(table.columns[name] for name in _COLUMNS), strict=True))
    notices += [f"{site}, {notice}" for notice in told]
    notices += [f"{site}: {notice}" for notice in repeated_rows(rows)]
    keys = row_pseudonyms(NAME, ((site, *row) for row in rows))
    return [
        Study(
            study_id="s" + key,
            patient_id="p" + key,
            site=site,
            cells={name: cells[i] for name, cells in columns.items()},
        )
        for i, key in enumerate(keys)
    ]


def _read_table(path: Path) -> Table:
    """Read a file without a header; ``?`` becomes blank."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected processed.NAME.data for {', '.join(SITES)}"
        )
    lines = csv.reader(io.StringIO(decode_text(path, "utf-8")))
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if any(line)]
    rows = np.array([i for i, _ in numbered], dtype=np.int64)
    ragged = np.array([len(line) != len(_COLUMNS) for _, line in numbered], dtype=bool)
    if ragged.any() or not numbered:
        where = f"another number in {rows_text(rows[ragged])}" if numbered else "no rows"
        raise DataError(f"{path.name}: expected rows of {len(_COLUMNS)} cells, found {where}")
    cells = [["" if cell.strip() == "?" else cell.strip() for cell in line] for _, line in numbered]
    columns: dict[str, Cells] = dict(zip(_COLUMNS, zip(*cells, strict=True), strict=True))
    return Table(path.name, rows, columns, ".")


def _without_gaps(table: Table) -> tuple[Table, int]:
    """Return the table without patients who lack anything in use, and how many those are."""
    used = [name for name in _COLUMNS if name not in _LEFT_OUT]
    full = [i for i in range(len(table)) if all(table.columns[name][i] for name in used)]
    columns: dict[str, Cells] = {
        name: [cells[i] for i in full] for name, cells in table.columns.items()
    }
    kept = Table(table.name, table.rows[full], columns, table.decimal)
    return kept, len(table) - len(kept)


def _cells(table: Table, name: str, feature: Feature, notices: list[str]) -> Cells:
    if isinstance(feature, BinaryFeature):
        return binary_cells(table, name)
    if isinstance(feature, NumericFeature):
        return _in_range(table, name, feature, notices)
    words = {_FIRST_CODE[name] + i: value for i, value in enumerate(feature.values)}
    return _decoded(table, name, words)


def _in_range(table: Table, name: str, feature: NumericFeature, notices: list[str]) -> Cells:
    """Blank what is not possible, which a notice counts; move the rest into the public range."""
    low, high = _POSSIBLE[name]
    possible = feature.model_copy(update={"low": low, "high": high})
    cells = feature_cells(table, name, possible, notices)
    return [_clamped(cell, feature) for cell in cells]


def _clamped(cell: str, feature: NumericFeature) -> str:
    inside = not cell or feature.low <= float(cell) <= feature.high
    return cell if inside else f"{min(max(float(cell), feature.low), feature.high):g}"


def _decoded(table: Table, name: str, words: Mapping[int, str]) -> Cells:
    """Replace the file's numbers by the categories that they stand for."""
    cells = table.columns[name]
    bad = mark(cells, lambda cell: number_of(cell, ".") not in words)
    refuse(table, name, bad, f"expected {min(words)} to {max(words)}, found something else")
    return [words[int(float(cell))] for cell in cells]


def _outcome(table: Table) -> NDArray[np.bool_]:
    """Whether any vessel is narrowed: bool [N]."""
    cells = table.columns[_OUTCOME]
    bad = mark(cells, lambda cell: number_of(cell, ".") not in range(5))
    refuse(table, _OUTCOME, bad, "expected 0 to 4, found something else")
    return np.array([float(cell) > 0 for cell in cells], dtype=bool)


def published_test_part(ill: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the test patients of a site, bool [N], as FLamby's fixed split does.

    The split is the one that scikit-learn's ``train_test_split`` makes with these sizes and this
    seed, stratified if there are more than two patients of either outcome. It depends on the
    order of the file. numpy guarantees that the numbers drawn by ``RandomState`` stay the same.
    """
    rng = np.random.RandomState(_SPLIT_SEED)
    train = math.floor(_TRAIN * len(ill))
    test = math.ceil((1.0 - _TRAIN) * len(ill))
    groups = [np.flatnonzero(~ill), np.flatnonzero(ill)]
    part = np.zeros(len(ill), dtype=bool)
    if min(map(len, groups)) <= 2:
        part[rng.permutation(len(ill))[:test]] = True
        return part
    sizes = np.array([len(group) for group in groups])
    in_train = _proportional(sizes, train, rng)
    in_test = _proportional(sizes - in_train, test, rng)
    for group, start, count in zip(groups, in_train, in_test, strict=True):
        part[rng.permutation(group)[start : start + count]] = True
    return part


def _proportional(
    sizes: NDArray[np.int64], total: int, rng: np.random.RandomState
) -> NDArray[np.int64]:
    """Share ``total`` out in proportion to ``sizes``, rounded by largest remainder.

    Equal remainders draw lots.
    """
    exact = sizes / sizes.sum() * total
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        left = total - int(shares.sum())
        if left <= 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        shares[rng.choice(equal, size=min(left, len(equal)), replace=False)] += 1
    return shares
