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
    noun
        What ``rows`` number: spreadsheet rows, or the entries of a file that is no table.
    """

    where: str
    rows: NDArray[np.int64]
    text: Sequence[str]
    noun: str = "row"

    @classmethod
    def absent(cls, where: str, rows: NDArray[np.int64], noun: str = "row") -> Self:
        """Make a column that the site does not have: every cell is blank."""
        return cls(where, rows, [""] * len(rows), noun)

    def finding(
        self, mask: NDArray[np.bool_], code: str, message: str, severity: Severity = "error"
    ) -> list[Finding]:
        """Report the cells under ``mask`` (bool [N]), if there are any."""
        if not mask.any():
            return []
        which = rows_text(self.rows[mask], self.noun)
        if self.noun == "row":
            which = f"{plural(int(mask.sum()), 'cell')} ({which})"
        return [Finding(severity, code, self.where, f"{which}: {message}")]


def rows_text(rows: Iterable[int], noun: str = "row") -> str:
    """Name the first rows, or whatever else is numbered, and how many more there are."""
    listed = sorted({int(row) for row in rows})
    shown = ", ".join(str(row) for row in listed[:_SHOWN_ROWS])
    more = len(listed) - _SHOWN_ROWS
    several = noun if len(listed) == 1 else _plural_of(noun)
    return f"{several} {shown}" + (f" and {more} more" if more > 0 else "")


def plural(count: int, noun: str) -> str:
    """``1 cell``, ``2 cells``, ``2 studies``, ``2 boxes``."""
    return f"1 {noun}" if count == 1 else f"{count:,} {_plural_of(noun)}"


def _plural_of(noun: str) -> str:
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith("x") else f"{noun}s"


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
