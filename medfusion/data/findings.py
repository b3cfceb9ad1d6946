"""Findings: what is wrong or odd in a site's files, told without any patient's value."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from medfusion.errors import DataError, did_you_mean

Severity = Literal["error", "warning", "note"]

_SHOWN_ROWS = 5
_SHOWN_ERRORS = 8
_SLIP = 0.8  # similarity of two names of which one is probably misspelt


@dataclass(frozen=True, order=True)
class Finding:
    """One observation: ``code`` for programs, ``where`` (file, column) and ``message`` for people.

    Messages hold counts, spreadsheet rows and column names, never the content of a cell.
    """

    severity: Severity
    code: str
    where: str
    message: str


@dataclass(frozen=True)
class Cells:
    """The text of one column with the place it came from.

    Attributes
    ----------
    where
        For people: file and column.
    rows
        int64 [N], spreadsheet rows (the header is row 1).
    text
        N stripped strings; blank means missing.
    """

    where: str
    rows: NDArray[np.int64]
    text: Sequence[str]

    @classmethod
    def absent(cls, where: str, rows: NDArray[np.int64]) -> Self:
        """Make a column that the site does not have: every cell is blank."""
        return cls(where, rows, [""] * len(rows))

    def finding(
        self, mask: NDArray[np.bool_], code: str, message: str, severity: Severity = "error"
    ) -> list[Finding]:
        """Report the cells under ``mask`` (bool [N]), if there are any."""
        if not mask.any():
            return []
        count = f"{plural(int(mask.sum()), 'cell')} ({rows_text(self.rows[mask])})"
        return [Finding(severity, code, self.where, f"{count}: {message}")]


def rows_text(rows: Iterable[int]) -> str:
    """Name the first rows, and how many more there are."""
    listed = sorted(int(row) for row in rows)
    shown = ", ".join(str(row) for row in listed[:_SHOWN_ROWS])
    more = len(listed) - _SHOWN_ROWS
    return f"row{'s' if len(listed) > 1 else ''} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )


def plural(count: int, noun: str) -> str:
    """``1 cell``, ``2 cells``, ``2 studies``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") else f"{count:,} {noun}s"


def raise_errors(findings: Iterable[Finding], *, site: str) -> None:
    """Raise a `DataError` that lists the first errors among ``findings``, if there are any."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    lines = [f"{error.where}: {error.message}" for error in errors[:_SHOWN_ERRORS]]
    if len(errors) > _SHOWN_ERRORS:
        lines.append(
            f"and {len(errors) - _SHOWN_ERRORS} more: `medfusion site check` lists all of them"
        )
    separator = "\n  " if len(lines) > 1 else " "
    raise DataError(f"site {site!r}:" + "".join(separator + line for line in lines))


def plain(name: str) -> str:
    """Return a column name without case, spaces and punctuation, for comparing."""
    return re.sub(r"[\W_]+", "", name.casefold())


def near_misses(name: str, known: Iterable[str]) -> list[str]:
    """Return the names that someone may have meant by ``name``: a slip of the pen away."""
    return [
        other
        for other in known
        if SequenceMatcher(None, plain(name), plain(other)).ratio() >= _SLIP and other != name
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)``; case and punctuation do not count."""
    names = list(known)
    for other in names:
        if plain(other) == plain(name):
            return f" (did you mean {other!r}?)"
    return did_you_mean(name, names)
