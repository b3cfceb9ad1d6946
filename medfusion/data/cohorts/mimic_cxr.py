"""Importer of MIMIC-CXR-JPG: chest radiographs with 14 observations mined from reports.

Source: physionet.org/content/mimic-cxr-jpg (Johnson et al. 2019, arXiv 1901.07042), under
PhysioNet's credentialed licence. Nothing of it ships with MedFusion.

The folder holds ``mimic-cxr-2.0.0-metadata.csv``, ``-chexpert.csv`` and ``-split.csv``, each as it
is or in gzip, and ``files/p10/p10000032/s50414267/DICOM.jpg``. Reports of MIMIC-CXR may lie beside
the studies as ``files/p10/p10000032/s50414267.txt``. A study of the cohort is a frontal image
(PA or AP); others are left out, and so are rows whose image was not fetched. The official split
is kept; its part ``validate`` calibrates. The data have no sites.

Observations are read as in `medfusion.data.cohorts.chexpert`: blank as 0, uncertain as unknown.
They were mined from findings and impression, which would give them away. So notes are made of
what the radiologist was told only: see `clinical_context`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from medfusion.data.cohorts.chexpert import LABELS, OBSERVATIONS, observation_cells
from medfusion.data.cohorts.source_table import (
    Cells,
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
from medfusion.data.findings import plural
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, Feature

NAME = "mimic-cxr"
FEATURES: dict[str, Feature] = {
    "view": CategoricalFeature(kind="categorical", values=("PA", "AP")),
}
_PATIENT, _STUDY, _IMAGE, _VIEW = "subject_id", "study_id", "dicom_id", "ViewPosition"
_PARTS = {"train": "train", "validate": "calibration", "test": "test"}
# Identifiers become parts of paths, so that nothing else may be in them.
_FORMS = {_PATIENT: re.compile(r"\d{2,12}"), _STUDY: re.compile(r"\d{1,12}")}
_FORMS[_IMAGE] = re.compile(r"[0-9a-f]+(-[0-9a-f]+)*")

_CONTEXT = re.compile(
    r"^[ \t]*(?:(?:clinical|patient|medical)[ ])?"
    r"(?:history|indications?|information|reason[ ]for[ ](?:this[ ])?(?:exam(?:ination)?|study))"
    r"(?:[ ]?(?:/|and)[ ]?(?:history|indications?))?[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
# A blank line, the header of another section at the start of a line or in capitals, or words by
# which a reading begins. Rather too little than a finding: the labels come from the findings.
_END = re.compile(
    r"\n[ \t]*\n|\n[ \t]*[A-Za-z][A-Za-z0-9 ,._/()&-]{2,60}:|\b[A-Z][A-Z0-9 ,._/]{3,60}:|"
    r"\b(?i:findings?|impression|conclusion|technique|comparisons?)[ \t]*(?::|\n|$)|"
    r"\b(?i:wet read|preliminary|addendum|final report|(?:one|two|three|single|\d+)[ ]views?)\b"
)
_READING = re.compile(r"\b(?:wet read|preliminary|addendum)\b", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def read(src: Path) -> Cohort:
    """Read the folder ``src``.

    Raises
    ------
    DataError
        If a table or column is missing, an identifier, part or observation cannot be read, an
        image has no part, or no image is there.
    """
    notices: list[str] = []
    table = _frontal(_read_metadata(src), notices)
    labels = read_source(_table_path(src, "chexpert"), (_STUDY, *OBSERVATIONS.values()))
    row_of = _rows_by_key(labels, _STUDY)
    table = _labelled(table, row_of, notices)
    images = [_image_file(src, *keys) for keys in _keys(table)]
    table, found = keep_with_images(table, images, notices, column=_IMAGE)
    rows = [row_of[study] for study in table.columns[_STUDY]]
    columns = {"view": table.columns[_VIEW], "split": _split(src, table)}
    for label, column in OBSERVATIONS.items():
        cells = observation_cells(labels, column)
        columns[label] = [cells[row] for row in rows]
    notes = [_note(image.parent) for image in found]
    if any(notes):
        columns["notes"] = notes
    task = task_sections(
        NAME,
        features=FEATURES,
        labels=LABELS,
        image_size=224,
        max_tokens=64 if any(notes) else None,
        split=True,
    )
    return Cohort(task=task, studies=_studies(table, columns, found), notices=notices)


def clinical_context(report: str) -> str:
    """Return what a report says was known before the image was read.

    These are the sections of indication and history, each up to its first blank line or the
    next header, in the order of the report. All else may tell the findings, even paragraphs
    without a header.
    """
    parts = []
    for header in _CONTEXT.finditer(report):
        paragraph = _BLANK_LINE.split(report[: header.start()])[-1]
        if _READING.search(paragraph):
            continue  # a reading, which repeats the history between findings
        rest = report[header.end() :]
        end = _END.search(rest)
        parts.append(" ".join(rest[: end.start() if end else None].split()))
    return " ".join(part for part in parts if part)


def _table_path(src: Path, part: str) -> Path:
    """Return one of the tables, unpacked or not."""
    plain = src / f"mimic-cxr-2.0.0-{part}.csv"
    packed = plain.with_name(plain.name + ".gz")
    return packed if packed.is_file() and not plain.is_file() else plain


def _read_metadata(src: Path) -> Table:
    table = read_source(_table_path(src, "metadata"), (*_FORMS, _VIEW))
    refuse_blank(table, _FORMS)
    for name, form in _FORMS.items():
        bad = np.array([not form.fullmatch(cell) for cell in table.columns[name]], dtype=bool)
        refuse(table, name, bad, "expected an identifier as PhysioNet writes it")
    refuse_repeated(table, (_IMAGE,), "expected each image once, found it again")
    return table


def _frontal(table: Table, notices: list[str]) -> Table:
    frontal = np.array([view in ("PA", "AP") for view in table.columns[_VIEW]], dtype=bool)
    if others := int((~frontal).sum()):
        notices.append(f"{_VIEW}: {plural(others, 'image')} not PA or AP, left out")
    return keep_rows(table, frontal)


def _labelled(table: Table, row_of: Mapping[str, int], notices: list[str]) -> Table:
    """Leave out the few studies whose report the labeler could not read."""
    labelled = np.array([study in row_of for study in table.columns[_STUDY]], dtype=bool)
    if others := int((~labelled).sum()):
        notices.append(f"{_STUDY}: {plural(others, 'image')} of studies without labels, left out")
    return keep_rows(table, labelled)


def _rows_by_key(table: Table, column: str) -> dict[str, int]:
    refuse_repeated(table, (column,))
    return {key: row for row, key in enumerate(table.columns[column])}


def _keys(table: Table) -> Iterator[tuple[str, str, str]]:
    return zip(*(table.columns[name] for name in (_PATIENT, _STUDY, _IMAGE)), strict=True)


def _image_file(src: Path, patient: str, study: str, image: str) -> Path | None:
    path = src / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{image}.jpg"
    return path if path.is_file() else None


def _split(src: Path, table: Table) -> Cells:
    """Return the part of each row in the words of a site's table."""
    parts = read_source(_table_path(src, "split"), (_IMAGE, "split"))
    bad = np.array([cell not in _PARTS for cell in parts.columns["split"]])
    refuse(parts, "split", bad, f"expected {', '.join(_PARTS)}, found something else")
    row_of = _rows_by_key(parts, _IMAGE)
    unlisted = mark(table.columns[_IMAGE], lambda image: image not in row_of)
    refuse(table, _IMAGE, unlisted, f"expected an image that {parts.name} lists, found another")
    return [_PARTS[parts.columns["split"][row_of[image]]] for image in table.columns[_IMAGE]]


def _note(study: Path) -> str:
    """Return the context in the report beside a study's folder; blank without a report."""
    report = study.with_name(study.name + ".txt")
    if not report.is_file():
        return ""
    return clinical_context(report.read_text("utf-8", errors="replace"))


def _studies(table: Table, columns: Mapping[str, Cells], images: Sequence[Path]) -> list[Study]:
    return [
        Study(
            study_id="s" + pseudonym(NAME, *keys),
            patient_id="p" + pseudonym(NAME, keys[0]),
            cells={name: cells[i] for name, cells in columns.items()},
            image=images[i],
        )
        for i, keys in enumerate(_keys(table))
    ]
