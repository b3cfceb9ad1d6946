"""Importer of OASIS-1: T1 brain scans of 18 to 96 year olds, one scanner (OASIS data use terms).

Source: Marcus et al., *Open Access Series of Imaging Studies (OASIS): cross-sectional MRI data in
young, middle aged, nondemented, and demented older adults*, Journal of Cognitive Neuroscience
19:1498-1507, 2007. Nothing of it ships with MedFusion; the user points to a copy.

The folder holds ``metadata.csv`` (columns as in the release, and ``subject``) and the scans: one
``.npz`` with ``volumes`` [N, X, Y, Z] and ``ids`` [N], or NIfTI files whose names begin with the
scan's ID, in any folder below. Some subjects were scanned twice; a patient is a subject.

===================  ================  ==========================  ===========================
importer             target            features                    scans
===================  ================  ==========================  ===========================
``oasis1``           age (regression)  sex                         all
``oasis1-sex``       sex               age                         all
``oasis1-dementia``  CDR above 0       age, sex, education, SES    of 60 year olds and older
===================  ================  ==========================  ===========================

Never read: MMSE, which nearly defines CDR; nWBV, ASF and eTIV (ASF's inverse, but for a constant),
which derive from the same scan. Education and SES were asked of the older subjects, so that
their being missing would tell the age: they are features of the third task only. CDR was not
rated in the young, and their 0 is no answer.
"""

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.source_table import (
    Cells,
    RangedFeature,
    feature_cells,
    keep_rows,
    keep_with_images,
    pseudonym,
    read_source,
    refuse_blank,
    refuse_repeated,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, NumericFeature
from medfusion.data.volumes import NIFTI
from medfusion.errors import DataError

NAME = "oasis1"
SIZE = (40, 48, 40)
LOWEST, HIGHEST = 18, 98  # years
_AGE, _SEX, _CDR, _ID, _SUBJECT = "Age", "M/F", "CDR", "ID", "subject"
_RATED_FROM = 60  # years
_BANDS = (30, 60, 75)  # years: sites differ in their shares of these
_FEATURES: Mapping[str, tuple[str, RangedFeature]] = {
    "age": (_AGE, NumericFeature(kind="numeric", low=LOWEST, high=HIGHEST, unit="year")),
    "sex": (_SEX, CategoricalFeature(kind="categorical", values=("F", "M"))),
    "education": ("Educ", NumericFeature(kind="numeric", low=1, high=5)),
    "ses": ("SES", NumericFeature(kind="numeric", low=1, high=5)),
}
_READ = {"age": ("sex",), "sex": ("age",), "dementia": ("age", "sex", "education", "ses")}


def read(src: Path, *, target: str = "age") -> Cohort:
    """Read the folder ``src``; ``target`` is ``age``, ``sex`` or ``dementia``.

    Raises
    ------
    DataError
        If the table or all scans are missing, or a cell that the target needs cannot be read.
    """
    columns = [column for column, _ in _FEATURES.values()]
    table = read_source(src / "metadata.csv", (_ID, _SUBJECT, _CDR, *columns))
    refuse_blank(table, (_ID, _SUBJECT))
    refuse_repeated(table, (_ID,), "expected each scan once, found it again")
    notices: list[str] = []
    ages = feature_cells(table, _AGE, _FEATURES["age"][1], notices)
    table = keep_rows(table, _wanted(ages, target))
    table, scans = _with_scans(table, src, notices)
    cells = {
        name: feature_cells(table, column, feature, notices)
        for name, (column, feature) in _FEATURES.items()
    }
    kept = {name: cells[name] for name in _READ[target]} | _labels(table, cells, target)
    subjects = table.columns[_SUBJECT]
    studies = [
        Study(
            study_id="s" + pseudonym(NAME, scan_id),
            patient_id="p" + pseudonym(NAME, subjects[i]),
            cells={name: values[i] for name, values in kept.items()},
            **scans[i],
        )
        for i, scan_id in enumerate(table.columns[_ID])
    ]
    bands = {
        study.patient_id: int(np.searchsorted(_BANDS, float(age or 0), side="right"))
        for study, age in zip(studies, cells["age"], strict=True)
    }
    return Cohort(
        task=_task(target),
        studies=studies,
        notices=notices,
        groups=bands if target == "age" else None,
        model="hyperfusion",
        rounds=30,
        # Scans are aligned: moving and tinting them takes away more than it adds.
        training={"schedule": "cosine"},
        learning_rate=2e-3,
        sections={"model": {"width": 8}},
    )


READERS: Mapping[str, Callable[[Path], Cohort]] = {
    NAME: read,
    f"{NAME}-sex": partial(read, target="sex"),
    f"{NAME}-dementia": partial(read, target="dementia"),
}


def _wanted(ages: Cells, target: str) -> NDArray[np.bool_]:
    """Mark the rows that a target is known for, bool [N]."""
    lowest = _RATED_FROM if target == "dementia" else LOWEST
    return np.array([bool(age) and float(age) >= lowest for age in ages], dtype=bool)


def _labels(table: Table, cells: Mapping[str, Cells], target: str) -> dict[str, Cells]:
    if target == "age":
        return {"age": cells["age"]}
    if target == "sex":
        codes = {"F": "0", "M": "1"}
        return {"male": [codes.get(sex, "") for sex in cells["sex"]]}
    rating = NumericFeature(kind="numeric", low=0, high=3)
    found = feature_cells(table, _CDR, rating, [])
    return {"demented": [str(int(float(cdr) > 0)) if cdr else "" for cdr in found]}


def _task(target: str) -> dict[str, Any]:
    name = NAME if target == "age" else f"{NAME}-{target}"
    features = {key: _FEATURES[key][1] for key in _READ[target]}
    label = {"age": "age", "sex": "male", "dementia": "demented"}[target]
    sections = task_sections(name, features=features, labels=[label])
    sections["image"] = {"column": "image", "dims": 3, "size": list(SIZE), "channels": 1}
    if target == "age":
        sections["task"]["kind"] = "regression"
        sections["labels"] |= {"low": LOWEST, "high": HIGHEST, "unit": "year"}
    return sections


def _with_scans(table: Table, src: Path, notices: list[str]) -> tuple[Table, list[dict[str, Any]]]:
    """Keep the rows whose scan is there; return the part of each `Study` that holds it."""
    volumes = _volumes(src)
    ids = table.columns[_ID]
    if volumes:
        # Stands for a file, so that rows without a scan are treated alike.
        found = [src / name if name in volumes else None for name in ids]
        table, _ = keep_with_images(table, found, notices, column=_ID)
        return table, [{"volume": volumes[name]} for name in table.columns[_ID]]
    files = sorted(
        path for path in src.rglob("*") if path.name.lower().endswith(NIFTI) and path.is_file()
    )
    fitting = [[path for path in files if path.name.startswith(name)] for name in ids]
    if several := sum(len(found) > 1 for found in fitting):
        raise DataError(
            f"{src}: expected one NIfTI file for each ID, found several for {several} of "
            f"{len(ids)}; keep those of one kind (such as the masked ones in atlas space) there"
        )
    named = [found[0] if found else None for found in fitting]
    table, images = keep_with_images(table, named, notices, column=_ID)
    return table, [{"image": image} for image in images]


def _volumes(src: Path) -> dict[str, NDArray[np.uint8]]:
    """Return the volumes in the folder's ``.npz``, by ID; empty without such a file."""
    for path in sorted(src.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as content:
                volumes, ids = content["volumes"], content["ids"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            raise DataError(
                f"{path}: expected arrays 'volumes' [N, X, Y, Z] and 'ids' [N], found others"
            ) from None
        if volumes.ndim != 4 or volumes.dtype != np.uint8 or ids.shape != volumes.shape[:1]:
            raise DataError(
                f"{path}: expected eight-bit 'volumes' [N, X, Y, Z] with as many 'ids', found "
                f"shape {volumes.shape}, {volumes.dtype}, and {ids.size} ids"
            )
        # As the scans that they were made from: towards the patient's left, front and top.
        return dict(zip(ids.tolist(), volumes[:, ::-1], strict=True))
    return {}
