"""Tables of numbers whose cells are bars: readable on a phone, in the dark and by a screen reader.

Legend: L labels (columns), R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.explain.cohort import Contrast, Importance


@dataclass(frozen=True)
class Cell:
    """A number, the share of the largest one that its bar shows, in percent, and its side."""

    text: str
    percent: int
    side: str  # "for" or "against"


@dataclass(frozen=True)
class HeatTable:
    """A table with a name for each column and each row."""

    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def heat_table(
    corner: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values_RL: NDArray[Any],
    *,
    notes: Sequence[Sequence[str]] | None = None,
) -> HeatTable:
    """Return a table of numbers [R, L]; ``notes`` stand behind each of them. NaN is a dash."""
    values = np.asarray(values_RL, dtype=np.float64)
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return HeatTable(
        corner,
        columns,
        [
            (
                name,
                [
                    _cell(value, largest, notes[row][column] if notes else "")
                    for column, value in enumerate(values[row])
                ],
            )
            for row, name in enumerate(rows)
        ],
    )


def importance_table(
    corner: str, labels: Sequence[str], names: Sequence[str], found: Importance, *, most: int
) -> HeatTable:
    """Return what matters most first, each with its interval."""
    order = found.order()[:most]
    ends = [
        [f" ({_number(lo)} to {_number(hi)})" for lo, hi in zip(low, high, strict=True)]
        for low, high in zip(found.low.T[order], found.high.T[order], strict=True)
    ]
    chosen = [names[one] for one in order]
    return heat_table(corner, labels, chosen, found.mean.T[order], notes=ends)


def contrast_table(labels: Sequence[str], names: Sequence[str], found: Contrast) -> HeatTable:
    """Return differences with the interval of chance; an asterisk where one lies outside."""
    notes = [
        [_chance(*ends) for ends in zip(*of_feature, strict=True)]
        for of_feature in zip(found.difference.T, found.low.T, found.high.T, strict=True)
    ]
    return heat_table("feature", labels, names, found.difference.T, notes=notes)


def _chance(difference: float, low: float, high: float) -> str:
    if np.isnan(difference):
        return ""
    beyond = "" if low <= difference <= high else "*"
    return f"{beyond} (chance: {_number(low)} to {_number(high)})"


def _cell(value: float, largest: float, note: str) -> Cell:
    if np.isnan(value):
        return Cell("-", 0, "for")
    percent = round(100 * abs(value) / largest)
    return Cell(_number(value) + note, percent, "for" if value >= 0 else "against")


def _number(value: float) -> str:
    """Write a number with two digits that count; what rounds to 0.001 or less is 0."""
    if abs(value) < 0.0005:
        return "0"
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.2g}"
        if abs(value) < 10
        else f"{value:.1f}"
    )
