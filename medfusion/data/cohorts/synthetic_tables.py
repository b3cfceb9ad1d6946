"""The tables of the synthetic hospitals: the same facts in each one's columns, units and codes."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from medfusion.data.cohorts.synthetic_hospitals import Hospital, Recoding
from medfusion.data.cohorts.synthetic_signal import FEATURES, LABELS
from medfusion.data.task import NumericFeature

Row = dict[str, str]


def write_table(path: Path, rows: Sequence[Row], place: Hospital) -> None:
    """Write the rows in the hospital's own columns, units, codes and file format."""
    order = ["study_id", "patient_id", "image", *FEATURES, "notes", *LABELS]
    kept = [name for name in order if name not in place.absent]
    recodings = {name: place.recodings.get(name, Recoding(name=name)) for name in kept}
    columns = {
        recoding.name: [_local(row[name], recoding) for row in rows]
        for name, recoding in recodings.items()
    }
    if path.suffix == ".parquet":
        typed = {recodings[name].name: _typed(name, columns[recodings[name].name]) for name in kept}
        pyarrow.parquet.write_table(pyarrow.table(typed), path)
        return
    for name in kept:
        if isinstance(FEATURES.get(name), NumericFeature) and place.decimal != ".":
            local = columns[recodings[name].name]
            local[:] = [cell.replace(".", place.decimal) for cell in local]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=place.delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _local(cell: str, recoding: Recoding) -> str:
    """Say one cell as the hospital does."""
    if cell and (recoding.scale, recoding.offset) != (1.0, 0.0):
        return number_text((float(cell) - recoding.offset) / recoding.scale)
    return recoding.codes.get(cell, cell)


def number_text(value: float) -> str:
    """Write a number with at most six decimals and no trailing zeros."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _typed(name: str, cells: Sequence[str]) -> pyarrow.Array:
    """Return a Parquet column of numbers or of text; blank cells become null."""
    if isinstance(FEATURES.get(name), NumericFeature):
        return pyarrow.array([float(cell) if cell else None for cell in cells], pyarrow.float64())
    if name in LABELS:
        return pyarrow.array([int(cell) if cell else None for cell in cells], pyarrow.int8())
    return pyarrow.array([cell or None for cell in cells], pyarrow.string())


def site_sections(place: Hospital) -> dict[str, Any]:
    """Return the sections ``files`` and ``columns`` of ``site.toml`` that undo the recodings."""
    columns: dict[str, Mapping[str, Any]] = {name: {"from": ""} for name in place.absent}
    for name, recoding in place.recodings.items():
        section: dict[str, Any] = {"from": recoding.name}
        if recoding.codes:
            section["map"] = {local: code for code, local in recoding.codes.items()}
        if recoding.scale != 1.0:
            section["scale"] = recoding.scale
        if recoding.offset != 0.0:
            section["offset"] = recoding.offset
        columns[name] = section
    files = {"studies": place.table, "images": "images"}
    if place.table.endswith(".csv"):
        files |= {"delimiter": place.delimiter, "decimal": place.decimal}
    return {"files": files, "columns": columns}
