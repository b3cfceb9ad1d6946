"""Importer of ADNI: T1 brain scans with the columns of its merge table, for three diagnoses.

Source: adni.loni.usc.edu (Petersen et al., *Alzheimer's Disease Neuroimaging Initiative (ADNI)*,
Neurology 74:201-209, 2010; ADNI data use agreement). Nothing of it ships with MedFusion; the user
points to a copy.

The folder holds ``ADNIMERGE.csv``, of which the rows of the baseline visit (``VISCODE`` ``bl``)
are read, and NIfTI files, in any folder below, with a participant's ``PTID`` in the name of the
file or of a folder above it. Of several files of a participant the one counts whose name has the
row's ``IMAGEUID`` (``..._I118671.nii``); an only file counts whatever its name, and a notice tells
how many bear another number. Rows without a scan are left out.

The label is ``DX`` at baseline: CN, MCI or AD (in the table ``Dementia``). The features are those
of HyperFusion (Duenias et al. 2025): age, sex, education, APOE4 alleles, three proteins of the
cerebrospinal fluid and two figures of PET. Never read: ``DX_bl``, MMSE, ADAS and other scores, by
which the diagnosis is made, and volumes, which derive from the same scan.

The proteins' public ranges are what the assay (Roche Elecsys) can measure: a cell such as ``<200``
or ``>1700``, and a number beyond, count as the nearer end. A negative number (-1, -4) is missing.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medfusion.data.cohorts.source_table import (
    Cells,
    RangedFeature,
    feature_cells,
    keep_rows,
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
from medfusion.data.columns import number_of
from medfusion.data.findings import plural
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, NumericFeature
from medfusion.data.volumes import NIFTI
from medfusion.errors import DataError

NAME = "adni"
CLASSES = ("CN", "MCI", "AD")
SIZE = (64, 96, 64)  # as in the paper
LABEL = "diagnosis"
_FILE, _ID, _VISIT, _BASELINE, _DX, _SCAN = (
    "ADNIMERGE.csv", "PTID", "VISCODE", "bl", "DX", "IMAGEUID"
)  # fmt: skip
_SPELLED = {"CN": "CN", "NL": "CN", "MCI": "MCI", "Dementia": "AD", "AD": "AD"}
_PTID = re.compile(r"(?<!\d)\d{3}_S_\d{4,5}(?!\d)")
_NUMBER = re.compile(r"(?<![A-Za-z0-9])I(\d+)")


def _number(low: float, high: float, unit: str = "") -> NumericFeature:
    return NumericFeature(kind="numeric", low=low, high=high, unit=unit)


_MEASURED: Mapping[str, tuple[str, NumericFeature]] = {
    "abeta": ("ABETA", _number(200, 1700, "pg/mL")),
    "tau": ("TAU", _number(80, 1300, "pg/mL")),
    "ptau": ("PTAU", _number(8, 120, "pg/mL")),
}
_FEATURES: Mapping[str, tuple[str, RangedFeature]] = {
    "age": ("AGE", _number(50, 100, "year")),
    "sex": ("PTGENDER", CategoricalFeature(kind="categorical", values=("Female", "Male"))),
    "education": ("PTEDUCAT", _number(0, 25, "year")),
    "apoe4": ("APOE4", _number(0, 2)),
    **_MEASURED,
    "fdg": ("FDG", _number(0.5, 2.0)),
    "av45": ("AV45", _number(0.5, 2.5)),
}


def read(src: Path) -> Cohort:
    """Read the folder ``src``.

    Raises
    ------
    DataError
        If the table, its baseline rows or all scans are missing, a participant has two such rows
        or several scans of which none is told to be the row's, or a cell cannot be read.
    """
    columns = [column for column, _ in _FEATURES.values()]
    table = read_source(src / _FILE, (_ID, _VISIT, _DX, *columns), missing="NA")
    refuse_blank(table, (_ID, _VISIT))
    table = _baseline(table)
    notices: list[str] = []
    table, scans = keep_with_images(table, _scans(table, src, notices), notices, column=_ID)
    cells = {
        name: feature_cells(table, column, feature, notices, cells=_cells(table, name, column))
        for name, (column, feature) in _FEATURES.items()
    }
    cells[LABEL] = _diagnoses(table)
    studies = [
        Study(
            study_id="s" + pseudonym(NAME, person),
            patient_id="p" + pseudonym(NAME, person),
            cells={name: values[i] for name, values in cells.items()},
            image=scans[i],
        )
        for i, person in enumerate(table.columns[_ID])
    ]
    return Cohort(
        task=_task(),
        studies=studies,
        notices=notices,
        groups={study.patient_id: _group(study.cells[LABEL]) for study in studies},
        model="hyperfusion",
        rounds=40,
        batch_size=16,
        learning_rate=1e-3,
        training={"schedule": "cosine", "augmentation": "light"},
    )


def _baseline(table: Table) -> Table:
    visits = table.columns[_VISIT]
    kept = keep_rows(table, np.array([visit == _BASELINE for visit in visits], dtype=bool))
    if not len(kept):
        raise DataError(
            f"{table.where(_VISIT)}: expected rows of the baseline visit ({_BASELINE!r}), "
            "found none"
        )
    refuse_repeated(kept, (_ID,), "expected one baseline visit of a participant, found another")
    return kept


def _cells(table: Table, name: str, column: str) -> Cells:
    """Return a column's cells, those of an assay within what it can measure."""
    cells = table.columns[column]
    if name not in _MEASURED:
        return cells
    feature = _MEASURED[name][1]
    return [_within(cell, feature.low, feature.high) for cell in cells]


def _within(cell: str, low: float, high: float) -> str:
    number = number_of(cell.removeprefix("<").removeprefix(">"), ".")
    if number is None:
        return cell  # blank, or text that is refused later
    return "" if number < 0 else f"{min(max(number, low), high):g}"


def _diagnoses(table: Table) -> Cells:
    cells = table.columns[_DX]
    unknown = mark(cells, lambda cell: cell not in _SPELLED)
    refuse(table, _DX, unknown, f"expected {', '.join(_SPELLED)} or blank, found something else")
    return [_SPELLED.get(cell, "") for cell in cells]


def _group(diagnosis: str) -> int:
    """Return by what artificial sites differ: the class, or none."""
    return CLASSES.index(diagnosis) if diagnosis else len(CLASSES)


def _scans(table: Table, src: Path, notices: list[str]) -> list[Path | None]:
    """Return the scan of each row, None where there is none."""
    files: dict[str, list[Path]] = {}
    for path in sorted(src.rglob("*")):
        if path.name.lower().endswith(NIFTI) and path.is_file():
            named = _PTID.findall(path.relative_to(src).as_posix())
            for person in dict.fromkeys(named[-1:]):  # the file's own name before its folders'
                files.setdefault(person, []).append(path)
    uids = [uid.removesuffix(".0") for uid in table.columns.get(_SCAN, [""] * len(table))]
    found = [_of_visit(files.get(n, []), u) for n, u in zip(table.columns[_ID], uids, strict=True)]
    if several := sum(len(scans) > 1 for scans in found):
        raise DataError(
            f"{src}: expected one NIfTI file for each {_ID}, found several for {several} of "
            f"{len(found)}; keep the baseline's, or those with its {_SCAN} (..._I118671.nii)"
        )
    taken = [scans[0] if scans else None for scans in found]
    others = sum(_is_another(scan, uid) for scan, uid in zip(taken, uids, strict=True))
    if others:
        notices.append(
            f"{_SCAN}: took {plural(others, 'scan')} with another image number in the name than "
            "the row has, for want of the row's own; it may be of another visit"
        )
    return taken


def _of_visit(scans: Sequence[Path], uid: str) -> Sequence[Path]:
    """Return the scans whose name has the image's number if there are several and some have."""
    if len(scans) < 2:
        return scans
    return [path for path in scans if uid in _NUMBER.findall(path.name)] or scans


def _is_another(scan: Path | None, uid: str) -> bool:
    """Whether a scan's name has an image's number, and not the row's."""
    named = _NUMBER.findall(scan.name) if scan else []
    return uid.isdigit() and bool(named) and uid not in named


def _task() -> dict[str, Any]:
    features = {name: feature for name, (_, feature) in _FEATURES.items()}
    sections = task_sections(NAME, features=features, labels=CLASSES)
    sections["task"]["kind"] = "multiclass"
    sections["labels"]["column"] = LABEL
    sections["image"] = {"column": "image", "dims": 3, "size": list(SIZE), "channels": 1}
    return sections
