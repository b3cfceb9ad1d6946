"""Importer of CheXpert: chest radiographs with 14 observations mined from reports.

Source: stanfordmlgroup.github.io/competitions/chexpert (Irvin et al. 2019, arXiv 1901.07031),
under Stanford's research use agreement. Nothing of it ships with MedFusion.

The folder holds ``train.csv``, ``valid.csv`` if it was fetched, and the folders ``train`` and
``valid``. ``valid``, which radiologists labelled, is the test part; without it patients are
split by hash. A study is a frontal image; lateral ones are left out, and so are rows whose
image was not fetched.

An observation is 1 or 0 as the report says. Blank means that the report does not mention it,
which counts as 0: radiologists seldom write what is not there. -1, uncertain, becomes blank,
which is unknown: it is masked from loss and metrics (U-Ignore in the paper). The data have no
sites.
"""

import re
from pathlib import Path

import numpy as np

from medfusion.data.cohorts.source_table import (
    Cells,
    RangedFeature,
    feature_cells,
    keep_rows,
    keep_with_images,
    pseudonym,
    read_source,
    refuse,
    refuse_repeated,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.columns import number_of
from medfusion.data.findings import plural
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, NumericFeature

NAME = "chexpert"
_OBSERVED = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# Label of the task -> column of the table, in all tables made by the CheXpert labeler.
OBSERVATIONS = {name.replace(" ", "_"): name for name in _OBSERVED}
LABELS = tuple(OBSERVATIONS)
FEATURES: dict[str, RangedFeature] = {
    # Adults only; a few unknown ages are written as 0.
    "age": NumericFeature(kind="numeric", low=18, high=100, unit="year"),
    "sex": CategoricalFeature(kind="categorical", values=("F", "M")),
    "view": CategoricalFeature(kind="categorical", values=("PA", "AP")),
}
_PATH, _SEX, _AGE, _SIDE, _VIEW = "Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"
_SEXES = {"Female": "F", "Male": "M", "Unknown": ""}
_PARTS = {"train.csv": "train", "valid.csv": "test"}
# What stands before it is the data set's name, whatever the user's folder is called.
_IMAGE_PATH = re.compile(r"(?:^|/)((?:train|valid)/(patient\d+)/study\d+/[\w-]+\.(?:jpg|png))$")


def read(src: Path) -> Cohort:
    """Read the folder ``src`` that holds ``train.csv``.

    Raises
    ------
    DataError
        If a table lacks a column, a path, a side or an observation cannot be read, an image is
        listed twice, or no image is there.
    """
    notices: list[str] = []
    studies: list[Study] = []
    split = (src / "valid.csv").is_file()
    for name, part in _PARTS.items():
        if name == "train.csv" or split:
            cells = {"split": part} if split else {}
            studies += _read_part(src, name, cells, notices)
    task = task_sections(NAME, features=FEATURES, labels=LABELS, image_size=224, split=split)
    return Cohort(task=task, studies=studies, notices=notices)


def observation_cells(table: Table, column: str) -> Cells:
    """Return N cells of an observation: 1 and 0 as they are, blank as 0, -1 as blank.

    See the module's docstring for why. Anything else is refused.
    """
    numbers = [number_of(cell or "0", ".") for cell in table.columns[column]]
    bad = np.array([number not in (-1.0, 0.0, 1.0) for number in numbers], dtype=bool)
    refuse(table, column, bad, "expected 1, 0, -1 or blank, found something else")
    return [{1.0: "1", 0.0: "0"}.get(number or 0.0, "") for number in numbers]


def _read_part(src: Path, name: str, constants: dict[str, str], notices: list[str]) -> list[Study]:
    """Return the frontal studies of one table; all of them get the cells ``constants``."""
    table = read_source(src / name, (_PATH, _SEX, _AGE, _SIDE, _VIEW, *OBSERVATIONS.values()))
    bad = np.array([_IMAGE_PATH.search(cell) is None for cell in table.columns[_PATH]])
    refuse(table, _PATH, bad, "expected .../train/patient00001/study1/view1_frontal.jpg or alike")
    refuse_repeated(table, (_PATH,), "expected each image once, found it again")
    found: list[str] = []
    table = _frontal(table, found)
    files = [src / match[1] for match in _matches(table)]
    images = [file if file.is_file() else None for file in files]
    table, kept = keep_with_images(table, images, found, column=_PATH)
    sexes = [_SEXES.get(cell, cell) for cell in table.columns[_SEX]]
    columns = {
        "age": feature_cells(table, _AGE, FEATURES["age"], found),
        "sex": feature_cells(table, _SEX, FEATURES["sex"], found, cells=sexes),
        "view": feature_cells(table, _VIEW, FEATURES["view"], found),
    }
    columns |= {label: observation_cells(table, column) for label, column in OBSERVATIONS.items()}
    notices += [f"{name}, {notice}" for notice in found]
    return [
        Study(
            study_id="s" + pseudonym(NAME, match[1]),
            patient_id="p" + pseudonym(NAME, match[2]),
            cells={key: cells[i] for key, cells in columns.items()} | constants,
            image=kept[i],
        )
        for i, match in enumerate(_matches(table))
    ]


def _matches(table: Table) -> list[re.Match[str]]:
    """Return for each row the match whose groups are the image below ``src``, and the patient."""
    matches = [_IMAGE_PATH.search(cell) for cell in table.columns[_PATH]]
    return [match for match in matches if match is not None]


def _frontal(table: Table, notices: list[str]) -> Table:
    sides = table.columns[_SIDE]
    strange = np.array([side not in ("Frontal", "Lateral") for side in sides], dtype=bool)
    refuse(table, _SIDE, strange, "expected Frontal or Lateral, found something else")
    frontal = np.array([side == "Frontal" for side in sides], dtype=bool)
    if others := int((~frontal).sum()):
        notices.append(f"{_SIDE}: {plural(others, 'image')} not frontal, left out")
    return keep_rows(table, frontal)
