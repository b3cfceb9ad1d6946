"""Importer of NIH ChestX-ray14: frontal radiographs with 14 text-mined labels of one hospital.

Source: nihcc.app.box.com/v/ChestXray-NIHCC (Wang et al. 2017, arXiv 1705.02315); free to use
with attribution to the NIH Clinical Center. Nothing of it ships with MedFusion.

Two layouts are read. The official one has ``Data_Entry_2017*.csv`` (of several the last by name,
which is the newest) beside ``images/`` or ``images_001/images/``, ...; with
``train_val_list.txt`` and ``test_list.txt`` the official split is kept, and no patient
calibrates. Images are brought to 224 pixels; rows whose image was not fetched are left out.
The prepared one has ``metadata.csv`` with a column for each label and images of 64 pixels, which
stay so. Its ``source_split`` is not used, because it tears patients apart.

A study is an image. The data have no sites.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medfusion.data.cohorts.source_table import (
    Cells,
    RangedFeature,
    binary_cells,
    feature_cells,
    find_images,
    keep_with_images,
    mark,
    pseudonym,
    read_source,
    refuse,
    refuse_blank,
    refuse_repeated,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.findings import plural
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, NumericFeature
from medfusion.errors import DataError

NAME = "nih-chestxray14"
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
FEATURES: dict[str, RangedFeature] = {
    "age": NumericFeature(kind="numeric", low=0, high=120, unit="year"),
    "sex": CategoricalFeature(kind="categorical", values=("F", "M")),
    "view": CategoricalFeature(kind="categorical", values=("PA", "AP")),
}
_NO_FINDING = "No Finding"
_IMAGE, _PATIENT, _FINDINGS, _AGE = "Image Index", "Patient ID", "Finding Labels", "Patient Age"
_SEX, _OLD_SEX, _VIEW = "Patient Sex", "Patient Gender", "View Position"
_AGE_WITH_UNIT = re.compile(r"^(\d{1,3})([YMD])$")
_A_YEAR = {"Y": 1.0, "M": 12.0, "D": 365.25}
_PARTS = {"train_val_list.txt": "train", "test_list.txt": "test"}


def read(src: Path) -> Cohort:
    """Read the folder ``src`` in the official or the prepared layout.

    Implausible ages (the official table has some above 120) are left blank, which a notice
    counts.

    Raises
    ------
    DataError
        If there is no table, a column is missing, a finding, label or key cannot be read, the
        lists of the split do not fit, or no image is there.
    """
    tables = sorted(src.glob("Data_Entry_2017*.csv"))
    if tables:
        return _read_official(tables[-1], src)
    if (src / "metadata.csv").is_file():
        return _read_prepared(src)
    raise DataError(
        f"{src}: expected Data_Entry_2017*.csv (the official table) or metadata.csv (with a column "
        "for each label), found neither"
    )


def _read_official(path: Path, src: Path) -> Cohort:
    table = read_source(path, (_IMAGE, _PATIENT, _FINDINGS, _AGE, _VIEW))
    sex = _OLD_SEX if _OLD_SEX in table.columns else _SEX
    if sex not in table.columns:
        raise DataError(f"{path.name}: expected a column {_SEX!r} or {_OLD_SEX!r}, found neither")
    _check_keys(table, _PATIENT, _IMAGE)
    files = _image_files(src)
    notices: list[str] = []
    images = [files.get(name) for name in table.columns[_IMAGE]]
    table, found = keep_with_images(table, images, notices, column=_IMAGE)
    ages = [_in_years(cell) for cell in table.columns[_AGE]]
    columns = {
        "age": feature_cells(table, _AGE, FEATURES["age"], notices, cells=ages),
        "sex": feature_cells(table, sex, FEATURES["sex"], notices),
        "view": feature_cells(table, _VIEW, FEATURES["view"], notices),
        **_labels_from_findings(table),
        **_official_split(table, src),
    }
    studies = _studies(table.columns[_PATIENT], table.columns[_IMAGE], columns, found)
    return _cohort(studies, notices, image_size=224, split="split" in columns)


def _read_prepared(src: Path) -> Cohort:
    table = read_source(src / "metadata.csv", ("image", "patient_id", *FEATURES, *LABELS))
    _check_keys(table, "patient_id", "image")
    notices: list[str] = []
    images = find_images(table, "image", src)
    table, found = keep_with_images(table, images, notices, column="image")
    columns = {
        name: feature_cells(table, name, feature, notices) for name, feature in FEATURES.items()
    }
    columns |= {name: binary_cells(table, name) for name in LABELS}
    studies = _studies(table.columns["patient_id"], table.columns["image"], columns, found)
    return _cohort(studies, notices, image_size=64, split=False)


def _check_keys(table: Table, patient: str, image: str) -> None:
    refuse_blank(table, (patient, image))
    refuse_repeated(table, (image,), "expected each image once, found it again")


def _studies(
    patients: Cells, pictures: Cells, columns: Mapping[str, Cells], images: Sequence[Path]
) -> list[Study]:
    return [
        Study(
            # By file name alone, so that both layouts give an image the same pseudonym.
            study_id="s" + pseudonym(NAME, patients[i], Path(pictures[i]).name),
            patient_id="p" + pseudonym(NAME, patients[i]),
            cells={name: cells[i] for name, cells in columns.items()},
            image=image,
        )
        for i, image in enumerate(images)
    ]


def _cohort(
    studies: Sequence[Study], notices: Sequence[str], *, image_size: int, split: bool
) -> Cohort:
    task = task_sections(NAME, features=FEATURES, labels=LABELS, image_size=image_size, split=split)
    return Cohort(
        task=task,
        studies=studies,
        notices=notices,
        rounds=40,
        training={"schedule": "cosine", "augmentation": "light"},
    )


def _in_years(age: str) -> str:
    """Turn ``058Y``, ``006M`` or ``010D`` of the first release into years; leave the rest."""
    found = _AGE_WITH_UNIT.match(age)
    return f"{int(found[1]) / _A_YEAR[found[2]]:.4g}" if found else age


def _labels_from_findings(table: Table) -> dict[str, Cells]:
    """Return label -> N cells out of ``Effusion|Mass`` or ``No Finding``."""
    findings = [set(cell.split("|")) for cell in table.columns[_FINDINGS]]
    known = {*LABELS, _NO_FINDING}
    bad = np.array(
        [not found <= known or (_NO_FINDING in found and len(found) > 1) for found in findings]
    )
    refuse(
        table,
        _FINDINGS,
        bad,
        f"expected {_NO_FINDING!r} alone, or names out of {', '.join(LABELS)} with '|' between",
    )
    return {name: [str(int(name in found)) for found in findings] for name in LABELS}


def _official_split(table: Table, src: Path) -> dict[str, Cells]:
    """Return N cells ``split``, train or test; nothing where the two lists are not there."""
    found = [name for name in _PARTS if (src / name).is_file()]
    if not found:
        return {}
    if len(found) == 1:
        missing = next(name for name in _PARTS if name not in found)
        raise DataError(f"{src}: expected both lists of the official split, found no {missing}")
    listed = {name: set((src / name).read_text("utf-8").split()) for name in _PARTS}
    if both := len(set.intersection(*listed.values())):
        raise DataError(
            f"{' and '.join(_PARTS)}: {plural(both, 'image')} in both lists; fetch them again"
        )
    part_of = {image: _PARTS[name] for name, images in listed.items() for image in images}
    names = table.columns[_IMAGE]
    unlisted = mark(names, lambda name: name not in part_of)
    refuse(table, _IMAGE, unlisted, f"expected an image of {' or '.join(_PARTS)}, found another")
    return {"split": [part_of[name] for name in names]}


def _image_files(src: Path) -> dict[str, Path]:
    """Return file name -> path of every image below the folders that the archives unpack to."""
    folders = (src / "images", *src.glob("images_*"), *src.glob("images_*/images"))
    return {path.name: path for folder in sorted(folders) for path in folder.glob("*.png")}
