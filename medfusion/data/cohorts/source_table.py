"""What importers share: read the table of a public data set; blank or refuse its cells.

An importer is a function ``read(src) -> Cohort`` (see `medfusion.data.cohorts.writing`) and one
line in `medfusion.data.cohorts.registry`. It reads with `read_source`, turns columns into clean
cells with `feature_cells` and `binary_cells`, checks its keys with `refuse_blank` and
`refuse_repeated`, and names patients and studies by `pseudonym`. It neither writes nor deals
patients to sites.

Every refusal is a `DataError` with file, column and rows. Neither errors nor notices hold the
content of a cell. A file without a header becomes a `Table` in its own importer; all the rest
here works on any `Table`.
"""

import gzip
import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.columns import number_of
from medfusion.data.findings import Finding, nearest, plural, rows_text
from medfusion.data.site import FilesOptions
from medfusion.data.table import Table, read_table
from medfusion.data.task import CategoricalFeature, Feature, NumericFeature
from medfusion.errors import DataError

Cells = Sequence[str]
RangedFeature = NumericFeature | CategoricalFeature  # one with a public range or list of values


def read_source(path: Path, required: Iterable[str], *, missing: str = "") -> Table:
    """Read a table with a header (CSV, CSV in gzip, or Parquet) that has the columns needed.

    Cells equal to ``missing`` become blank; blank always means missing.

    Raises
    ------
    DataError
        If the file is absent or no table, lacks a column, or has no rows.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table; expected it in the folder of the data set")
    table, findings = _read_gzip(path) if path.suffix == ".gz" else read_table(path, FilesOptions())
    problems = [f"{finding.where}: {finding.message}" for finding in findings]
    problems += [
        f"{path.name}: no column {name!r}{nearest(name, table.columns)}"
        for name in required
        if name not in table.columns
    ]
    if not problems and not len(table):
        problems = [f"{path.name}: expected at least one row, found only a header"]
    if problems:
        raise DataError("; ".join(problems))
    if not missing:
        return table
    columns: dict[str, Cells] = {
        name: ["" if cell == missing else cell for cell in cells]
        for name, cells in table.columns.items()
    }
    return replace(table, columns=columns)


def _read_gzip(path: Path) -> tuple[Table, list[Finding]]:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        try:
            plain.write_bytes(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error):
            raise DataError(f"{path}: not a readable gzip file; fetch it again") from None
        return read_table(plain, FilesOptions())


def feature_cells(
    table: Table,
    column: str,
    feature: RangedFeature,
    notices: list[str],
    *,
    cells: Cells | None = None,
) -> Cells:
    """Return the N cells of a feature with implausible ones blanked, which a notice counts.

    Implausible is what lies outside the public range, or is not one of the public values.
    ``cells`` [N] stands for the table's own where they had to be recoded first; ``column`` is
    the table's column that messages name. Text in place of a number is refused.
    """
    if cells is None:
        cells = table.columns[column]
    if isinstance(feature, NumericFeature):
        bad = mark(cells, lambda cell: number_of(cell, ".") is None)
        refuse(table, column, bad, "expected a number or blank, found text")
        low, high = feature.low, feature.high
        expected = f"{low:g} to {high:g}" + (f" {feature.unit}" if feature.unit else "")
        bad = mark(cells, lambda cell: not low <= float(cell) <= high)
    else:
        known = feature.values
        expected = ", ".join(known)
        bad = mark(cells, lambda cell: cell not in known)
    if bad.any():
        notices.append(f"{column}: blanked {plural(int(bad.sum()), 'cell')} outside {expected}")
    return ["" if is_bad else cell for cell, is_bad in zip(cells, bad, strict=True)]


def binary_cells(table: Table, column: str) -> Cells:
    """Return the N cells of a label or yes-no feature as 1, 0 or blank; refuse anything else."""
    cells = table.columns[column]
    bad = mark(cells, lambda cell: number_of(cell, ".") not in (0.0, 1.0))
    refuse(table, column, bad, "expected 1, 0 or blank, found something else")
    return [str(int(float(cell))) if cell else "" for cell in cells]


def mark(cells: Cells, is_bad: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Mark the cells that are not blank and are bad: bool [N]."""
    return np.array([bool(cell) and is_bad(cell) for cell in cells], dtype=bool)


def refuse(table: Table, column: str, bad: NDArray[np.bool_], message: str) -> None:
    """Raise a `DataError` if any cell is bad (bool [N]), naming file, column and rows."""
    if bad.any():
        count = f"{plural(int(bad.sum()), 'cell')} ({rows_text(table.rows[bad])})"
        raise DataError(f"{table.where(column)}: {count}: {message}; correct the table")


def pixel_cells(table: Table, column: str) -> list[float]:
    """Return the numbers of pixels in a column; raises `DataError` on text and blanks."""
    cells = table.columns[column]
    bad = np.array([number_of(cell, ".") is None for cell in cells], dtype=bool)
    refuse(table, column, bad, "expected a number of pixels, found text or blank")
    return [float(cell) for cell in cells]


def refuse_blank(table: Table, columns: Iterable[str]) -> None:
    """Refuse blank cells in columns that every row needs."""
    for name in columns:
        blank = np.array([not cell for cell in table.columns[name]], dtype=bool)
        refuse(table, name, blank, "expected a value, found blank")


def refuse_repeated(
    table: Table, columns: Sequence[str], message: str = "expected each key once, found it again"
) -> None:
    """Refuse rows that repeat an earlier row's key, which the ``columns`` form together."""
    keys = list(zip(*(table.columns[name] for name in columns), strict=True))
    seen: set[tuple[str, ...]] = set()
    repeated = np.zeros(len(keys), dtype=bool)
    for i, key in enumerate(keys):
        repeated[i] = key in seen
        seen.add(key)
    refuse(table, columns[-1], repeated, message)


def find_images(table: Table, column: str, src: Path) -> list[Path | None]:
    """Return the file that each cell names, relative to ``src``: N of them, None if not there.

    Names that lead outside ``src``, by ``..``, as absolute paths or through symbolic links, are
    refused.
    """
    root = src.resolve()
    paths = [(src / cell).resolve() for cell in table.columns[column]]
    outside = np.array([not path.is_relative_to(root) for path in paths], dtype=bool)
    refuse(table, column, outside, "expected a file in this folder, found a path outside")
    return [path if path.is_file() else None for path in paths]


def keep_rows(table: Table, keep: NDArray[np.bool_]) -> Table:
    """Return the table without the rows that ``keep`` (bool [N]) leaves out."""
    columns: dict[str, Cells] = {
        name: list(compress(cells, keep)) for name, cells in table.columns.items()
    }
    return replace(table, rows=table.rows[keep], columns=columns)


def first_rows(table: Table, column: str) -> Table:
    """Return the table with the first row of each key in ``column`` alone."""
    first = {key: row for row, key in reversed(list(enumerate(table.columns[column])))}
    return keep_rows(table, np.isin(np.arange(len(table)), list(first.values())))


def keep_with_images(
    table: Table, images: Sequence[Path | None], notices: list[str], *, column: str
) -> tuple[Table, list[Path]]:
    """Keep the rows whose image (N files, None if not there) is there; a notice counts others.

    For sets whose table lists many more images than most people fetch. ``column`` names the
    images.

    Raises
    ------
    DataError
        If no image is there.
    """
    found = [image for image in images if image is not None]
    if not found:
        raise DataError(
            f"{table.where(column)}: expected images in the folder of the data set, found none of "
            f"the {len(images):,} that the table names; unpack the images beside the table"
        )
    if absent := len(images) - len(found):
        notices.append(f"{column}: {plural(absent, 'image')} not there, their rows left out")
    there = np.array([image is not None for image in images], dtype=bool)
    return keep_rows(table, there), found


def pseudonym(data_set: str, *parts: str) -> str:
    """Return 12 hex digits that stand for the source's identifiers, the same in every import."""
    return hashlib.sha256(json.dumps([data_set, *parts]).encode()).hexdigest()[:12]


def task_sections(
    name: str,
    *,
    features: Mapping[str, Feature],
    labels: Sequence[str],
    image_size: int | None = None,
    max_tokens: int | None = None,
    split: bool = False,
) -> dict[str, Any]:
    """Return the content of ``task.toml`` for a data set.

    ``image_size`` in pixels gives it square grey images, ``max_tokens`` notes; ``split`` says
    that the column ``split`` holds train, calibration or test for each study.
    """
    sections: dict[str, Any] = {
        "task": {
            "name": name,
            "kind": "multilabel",
            "patient": "patient_id",
            "study": "study_id",
            "bins": 32,
        },
        "split": {"column": "split"} if split else {},
    }
    sections["split"] |= {"seed": 0, "calibration": 0.1, "test": 0.2}
    if image_size is not None:
        size = [image_size, image_size]
        sections["image"] = {"column": "image", "dims": 2, "size": size, "channels": 1}
    if max_tokens is not None:
        sections["text"] = {"column": "notes", "max_tokens": max_tokens}
    sections["features"] = {key: feature.model_dump() for key, feature in features.items()}
    sections["labels"] = {"names": list(labels)}
    return sections
