"""The one reader of a site's table: CSV or Parquet in, stripped strings by column out."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from medfusion.data.findings import Finding, nearest, plural, rows_text
from medfusion.data.site import FilesOptions
from medfusion.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
_LIKE_DATA = re.compile(r"^(?=.*\d)[\W\d_]+$")  # digits without any letter


@dataclass(frozen=True, repr=False)
class Table:
    """A table as text.

    Attributes
    ----------
    name
        File name, for messages.
    rows
        int64 [N], the spreadsheet row of each record (the header is row 1).
    columns
        Header -> N stripped strings. Of columns with one name the first is kept.
    decimal
        Decimal mark of the numbers.
    """

    name: str
    rows: NDArray[np.int64]
    columns: dict[str, Sequence[str]]
    decimal: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def has_header(self) -> bool:
        """Whether the first row reads like names rather than like a patient's data."""
        return 4 * sum(map(bool, map(_LIKE_DATA.match, self.columns))) <= len(self.columns)

    def where(self, column: str) -> str:
        """Name the place of a column, by its position where its name may be a patient's value."""
        if column in self.columns and not self.has_header:
            return f"{self.name}, column {1 + list(self.columns).index(column)}"
        return f"{self.name}, column {column!r}"

    def similar(self, column: str) -> str:
        """`` (did you mean 'x'?)`` among the headers, which may not be shown if they are data."""
        return nearest(column, self.columns) if self.has_header else ""


def read_table(path: Path, options: FilesOptions) -> tuple[Table, list[Finding]]:
    """Read a table as strings.

    Returns
    -------
    The table, and findings about its form: ragged rows, doubled headers, a wrong delimiter.

    Raises
    ------
    DataError
        If the file cannot be read as a table at all: missing, not in the stated encoding,
        broken quotes, not Parquet.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        return _read_text(path, options)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or 'damaged'})") from None


def decode_text(path: Path, encoding: str) -> str:
    """Decode a text file, dropping a byte-order mark; bad bytes become a `DataError`."""
    data = path.read_bytes()
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        return data.decode("utf-8-sig" if utf8 else encoding)
    except UnicodeError as error:
        row = ""
        if isinstance(error, UnicodeDecodeError):
            row = f", row {1 + data[: error.start].count(10)}, byte {error.start}"
        raise DataError(
            f"{path}{row}: not {encoding.upper()}; save the table as UTF-8 or set "
            "`encoding` in [files] of site.toml (cp1252 is common for older spreadsheets)"
        ) from None


def _read_text(path: Path, options: FilesOptions) -> tuple[Table, list[Finding]]:
    text = decode_text(path, options.encoding)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=options.delimiter, strict=True)
    try:
        records = [[cell.strip() for cell in record] for record in reader]
    except csv.Error:
        raise DataError(
            f"{path}, near line {reader.line_num}: quotes do not match; a quote inside a quoted "
            'cell is written twice ("")'
        ) from None
    if not records or not any(records[0]):
        raise DataError(f"{path}, row 1: expected a header with column names, found a blank row")
    header, body = records[0], records[1:]
    kept = [i for i, record in enumerate(body) if any(record)]
    rows = np.array([i + 2 for i in kept], dtype=np.int64)
    findings = _form_findings(path.name, header, [body[i] for i in kept], rows, options)
    width = len(header)
    padded = [(body[i] + [""] * width)[:width] for i in kept]
    columns: dict[str, Sequence[str]] = {}
    for position, name in enumerate(header):
        columns.setdefault(name, [record[position] for record in padded])
    return Table(path.name, rows, columns, options.decimal), findings


def _form_findings(
    name: str,
    header: list[str],
    records: list[list[str]],
    rows: NDArray[np.int64],
    options: FilesOptions,
) -> list[Finding]:
    """Ragged rows, doubled headers, and a header that another delimiter would split."""
    findings = []
    ragged = np.array([len(record) != len(header) for record in records], dtype=bool)
    if ragged.any():
        found = f"{plural(int(ragged.sum()), 'row')} ({rows_text(rows[ragged])})"
        message = f"expected {len(header)} cells as in the header, found another number in {found}"
        findings.append(Finding("error", "ragged-row", name, message))
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        columns = f"columns {', '.join(map(repr, twice))}" if _named(header) else "several columns"
        message = f"expected different column names, found {columns} more than once"
        findings.append(Finding("error", "duplicate-column", name, message))
    others = [mark for mark in DELIMITERS if mark != options.delimiter and mark in header[0]]
    if len(header) == 1 and others:
        message = f"a single column; set delimiter = {others[0]!r} in [files] of site.toml"
        findings.append(Finding("error", "wrong-delimiter", f"{name}, row 1", message))
    return findings


def _named(header: Sequence[str]) -> bool:
    return not any(_LIKE_DATA.match(name) for name in header)


def _read_parquet(path: Path) -> tuple[Table, list[Finding]]:
    try:
        content = pyarrow.parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({type(error).__name__})") from None
    columns: dict[str, Sequence[str]] = {
        name: [_cell_text(value) for value in content.column(position).to_pylist()]
        for position, name in reversed(list(enumerate(content.column_names)))
    }
    columns = {name: columns[name] for name in content.column_names}  # first of a name, in order
    rows = np.arange(2, content.num_rows + 2, dtype=np.int64)
    findings = []
    if len(columns) < content.num_columns:
        message = "expected different column names, found some more than once"
        findings.append(Finding("error", "duplicate-column", path.name, message))
    return Table(path.name, rows, columns, "."), findings


def _cell_text(value: Any) -> str:
    """Write a typed cell as text: missing is blank, truth is 1 or 0, 2.0 becomes 2."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        if value != value:  # NaN
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value).strip()
