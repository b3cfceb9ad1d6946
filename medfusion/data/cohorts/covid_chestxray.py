"""Importer of the COVID-19 image data collection, as prepared with regions for sites.

Source: github.com/ieee8023/covid-chestxray-dataset (metadata CC BY-NC-SA, a licence for each
image). Nothing of it ships with MedFusion; the user points to a copy.

The folder holds ``metadata.csv``, one row per radiograph, and the images that it names. Sites
are the regions in its column ``site``. Labels are outcomes of the patient. Notes are those with
the diagnosis masked, because many of the others name it.
"""

import csv
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.writing import (
    Imported,
    SiteSummary,
    new_folder,
    write_config,
    write_site,
    write_task,
)
from medfusion.data.columns import number_of
from medfusion.data.findings import nearest, plural, rows_text
from medfusion.data.site import FilesOptions, SiteInfo
from medfusion.data.table import Table, read_table
from medfusion.data.task import CategoricalFeature, Feature, NumericFeature
from medfusion.errors import ConfigError, DataError, UsageError

NAME = "covid-chestxray"
LABELS = ("went_icu", "in_icu", "survival", "intubated", "intubation_present")

# Ranges from clinical knowledge, wide enough for the seriously ill; not learned from the data.
FEATURES: dict[str, Feature] = {
    "age": NumericFeature(kind="numeric", low=0, high=120, unit="year"),
    "sex": CategoricalFeature(kind="categorical", values=("F", "M")),
    "view": CategoricalFeature(kind="categorical", values=("PA", "AP", "AP Supine")),
    "offset_days": NumericFeature(kind="numeric", low=-20, high=180, unit="day"),
    "temperature_c": NumericFeature(kind="numeric", low=32, high=43, unit="degC"),
    "po2_saturation": NumericFeature(kind="numeric", low=30, high=100, unit="%"),
    "leukocyte_count": NumericFeature(kind="numeric", low=0, high=50, unit="10^3/uL"),
    "neutrophil_count": NumericFeature(kind="numeric", low=0, high=50, unit="10^3/uL"),
    "lymphocyte_count": NumericFeature(kind="numeric", low=0, high=15, unit="10^3/uL"),
}
_UNKNOWN_VIEW = "frontal-unspecified"  # a way to say that the view is not known
_PATIENT, _SITE, _IMAGE, _NOTES = "patientid", "site", "image", "clinical_notes_masked"
_SOURCE_COLUMNS = (_PATIENT, _SITE, _IMAGE, _NOTES, *FEATURES, *LABELS)
_HEADER = ("study_id", "patient_id", "image", *FEATURES, "notes", *LABELS)

Cells = Sequence[str]


def import_cohort(src: Path, out: Path) -> Imported:
    """Turn the folder ``src`` into a cohort at ``out``: a site folder for each region.

    Studies and patients get pseudonyms that depend only on the source's own identifiers.
    Features outside their public range, or of an unknown category, are left blank; the
    notices count them by column.

    Raises
    ------
    UsageError
        If ``src`` is not a folder, or ``out`` is not a new or empty one.
    DataError
        If the table lacks a column or a key, holds text in place of a number or of a label,
        repeats a study, or names an image outside ``src``.
    """
    if not src.is_dir():
        raise UsageError(f"{src}: expected the folder of the data set, found none")
    table = _read(src / "metadata.csv")
    columns = {name: table.columns[name] for name in _SOURCE_COLUMNS}
    notices: list[str] = []
    for name, feature in FEATURES.items():
        columns[name] = _clean_feature(table, name, feature, notices)
    for name in LABELS:
        columns[name] = _clean_label(table, name)
    _check_keys(table)
    images = _find_images(table, src, notices)
    with new_folder(out) as folder:
        task = write_task(folder, _task_sections())
        sites = _write_sites(folder, table, columns, images)
        write_config(
            folder, task=task, sites=len(sites), rounds=10, batch_size=16, learning_rate=1e-3
        )
    return Imported(sites=tuple(sites), notices=(*notices, *_shared_patients(table)))


def _task_sections() -> dict[str, Any]:
    """Content of ``task.toml``."""
    return {
        "task": {
            "name": NAME,
            "kind": "multilabel",
            "patient": "patient_id",
            "study": "study_id",
            "bins": 32,
        },
        "split": {"seed": 0, "calibration": 0.1, "test": 0.2},
        "image": {"column": "image", "dims": 2, "size": [128, 128], "channels": 1},
        "text": {"column": "notes", "max_tokens": 128},
        "features": {name: feature.model_dump() for name, feature in FEATURES.items()},
        "labels": {"names": list(LABELS)},
    }


def _read(path: Path) -> Table:
    """Read the metadata; see that it has rows and the columns needed."""
    if not path.is_file():
        raise DataError(f"{path}: no such table; expected metadata.csv beside the images")
    table, findings = read_table(path, FilesOptions())
    problems = [f"{finding.where}: {finding.message}" for finding in findings]
    problems += [
        f"{path.name}: no column {name!r}{nearest(name, table.columns)}"
        for name in _SOURCE_COLUMNS
        if name not in table.columns
    ]
    if not problems and not len(table):
        problems = [f"{path.name}: expected a row for each image, found only a header"]
    if problems:
        raise DataError("; ".join(problems))
    return table


def _clean_feature(table: Table, name: str, feature: Feature, notices: list[str]) -> Cells:
    """Return a feature's cells with implausible ones blanked, which a notice counts."""
    cells = table.columns[name]
    if isinstance(feature, CategoricalFeature):
        cells = ["" if cell == _UNKNOWN_VIEW else cell for cell in cells]
        known, expected = feature.values, ", ".join(feature.values)
        bad = _mask(cells, lambda cell: cell not in known)
    else:
        assert isinstance(feature, NumericFeature)
        _refuse(
            table,
            name,
            _mask(cells, lambda cell: number_of(cell, ".") is None),
            "expected a number or blank, found text",
        )
        low, high = feature.low, feature.high
        expected = f"{low:g} to {high:g} {feature.unit}"
        bad = _mask(cells, lambda cell: not low <= float(cell) <= high)
    if bad.any():
        notices.append(f"{name}: blanked {plural(int(bad.sum()), 'cell')} outside {expected}")
    return ["" if is_bad else cell for cell, is_bad in zip(cells, bad, strict=True)]


def _clean_label(table: Table, name: str) -> Cells:
    """Return a label's cells as 1, 0 or blank."""
    cells = table.columns[name]
    bad = _mask(cells, lambda cell: number_of(cell, ".") not in (0.0, 1.0))
    _refuse(table, name, bad, "expected 1, 0 or blank, found something else")
    return [str(int(float(cell))) if cell else "" for cell in cells]


def _check_keys(table: Table) -> None:
    """Refuse blank keys, sites that cannot name a folder, and repeated studies."""
    for name in (_PATIENT, _SITE, _IMAGE):
        blank = np.array([not cell for cell in table.columns[name]])
        _refuse(table, name, blank, "expected a value, found blank")
    bad = _mask(table.columns[_SITE], lambda cell: not _is_site_name(cell))
    _refuse(table, _SITE, bad, "expected a name of letters, digits, '.', '_', '-'")
    keys = list(zip(table.columns[_PATIENT], table.columns[_IMAGE], strict=True))
    seen: set[tuple[str, str]] = set()
    repeated = np.zeros(len(keys), dtype=bool)
    for i, key in enumerate(keys):
        repeated[i] = key in seen
        seen.add(key)
    _refuse(table, _IMAGE, repeated, "expected each image of a patient once, found it again")


def _is_site_name(name: str) -> bool:
    try:
        SiteInfo.parse({"name": name, "task": "task.toml", "patients_public": 1}, where="site")
    except ConfigError:
        return False
    return True


def _find_images(table: Table, src: Path, notices: list[str]) -> list[Path | None]:
    """Return the image file of each row; a notice counts those that are not there."""
    root = src.resolve()
    paths = [(src / cell).resolve() for cell in table.columns[_IMAGE]]
    outside = np.array([not path.is_relative_to(root) for path in paths])
    _refuse(table, _IMAGE, outside, "expected a file in this folder, found a path outside")
    found = [path if path.is_file() else None for path in paths]
    if absent := found.count(None):
        notices.append(f"{_IMAGE}: {plural(absent, 'file')} not there, taken as missing")
    return found


def _write_sites(
    root: Path,
    table: Table,
    columns: Mapping[str, Cells],
    images: Sequence[Path | None],
) -> list[SiteSummary]:
    """Write a folder for each region, its studies in the order of their pseudonyms."""
    by_site: dict[str, list[dict[str, str]]] = defaultdict(list)
    for i, image in enumerate(images):
        patient, picture = columns[_PATIENT][i], columns[_IMAGE][i]
        study = "s" + _pseudonym(patient, picture)
        row = {name: columns[name][i] for name in (*FEATURES, *LABELS)}
        row |= {"study_id": study, "patient_id": "p" + _pseudonym(patient)}
        row |= {"notes": columns[_NOTES][i], "image": ""}
        site = columns[_SITE][i]
        if image is not None:
            row["image"] = study + image.suffix.lower()
            target = root / "sites" / site / "images" / row["image"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
        by_site[site].append(row)
    return [_write_site(root, site, by_site[site]) for site in sorted(by_site)]


def _write_site(root: Path, site: str, rows: Sequence[Mapping[str, str]]) -> SiteSummary:
    folder = root / "sites" / site
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "studies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["study_id"]))
    return write_site(root, site, files={"studies": "studies.csv", "images": "images"})


def _pseudonym(*parts: str) -> str:
    """Return 12 hex digits that stand for the source's identifiers, the same in every import."""
    return hashlib.sha256(json.dumps([NAME, *parts]).encode()).hexdigest()[:12]


def _shared_patients(table: Table) -> list[str]:
    """Say how many patients are known to several sites: each site will count them as its own."""
    sites: dict[str, set[str]] = defaultdict(set)
    for patient, site in zip(table.columns[_PATIENT], table.columns[_SITE], strict=True):
        sites[patient].add(site)
    shared = sum(len(names) > 1 for names in sites.values())
    if not shared:
        return []
    return [f"{_PATIENT}: {plural(shared, 'patient')} in several sites, kept in each of them"]


def _mask(cells: Cells, is_bad: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Mark the cells that are not blank and are bad: bool [N]."""
    return np.array([bool(cell) and is_bad(cell) for cell in cells], dtype=bool)


def _refuse(table: Table, column: str, bad: NDArray[np.bool_], message: str) -> None:
    """Raise a `DataError` if any cell is bad, naming file, column and rows."""
    if bad.any():
        count = f"{plural(int(bad.sum()), 'cell')} ({rows_text(table.rows[bad])})"
        raise DataError(f"{table.where(column)}: {count}: {message}; correct the table")
