"""Tables of the report: texts, bars that draw an interval, and cells tinted by their figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from medfusion.evaluation.intervals import Interval


@dataclass(frozen=True)
class Bar:
    """An interval on a scale: places in percent of the cell's width.

    It repeats figures that the row has in words, so readers of the screen skip it.
    """

    low: float
    high: float
    at: float
    reference: float | None


@dataclass(frozen=True)
class Scale:
    """What a column of bars runs from and to, with a value to compare with."""

    low: float
    high: float
    reference: float | None = None

    def bar(self, figure: Interval) -> Bar | str:
        """Return the bar of a figure; nothing where it has no interval."""
        if figure.mean is None or figure.ci95 is None:
            return ""
        reference = None if self.reference is None else self._place(self.reference)
        low, high = (self._place(end) for end in figure.ci95)
        return Bar(low, high, self._place(figure.mean), reference)

    def _place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 1)

    def __str__(self) -> str:
        line = "" if self.reference is None else f", line at {self.reference:g}"
        return f"{self.low:.3g} to {self.high:.3g}{line}"


@dataclass(frozen=True)
class Heat:
    """A figure with its interval on a tint of 0 (worst) to 100 (best); ``marked`` has a frame."""

    text: str
    ends: str
    tint: int
    marked: bool


def heat(
    text: str, ends: str, value: float | None, worst: float, best: float, *, marked: bool
) -> Heat:
    """Return a cell whose tint tells where ``value`` lies between the worst and the best."""
    if value is None or worst == best:
        return Heat(text, ends, 0, marked)
    return Heat(text, ends, round(100 * (value - worst) / (best - worst)), marked)


Cell = str | Bar | Heat


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each its name; ``numeric`` columns are flush right.

    ``caption`` names the table for those who hear the page.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int]


def table(
    caption: str, head: tuple[str, ...], rows: Sequence[tuple[Cell, ...]], *, words: int
) -> Table:
    """Return a table whose columns from the ``words``-th on are numeric."""
    return Table(caption, head, tuple(rows), frozenset(range(words, len(head))))


def area_scale(figures: Sequence[Interval]) -> Scale:
    """Return a scale for areas under a curve, down to the lowest of their intervals."""
    ends = [figure.ci95[0] for figure in figures if figure.ci95]
    lowest = min([0.4, *ends])
    return Scale(int(lowest * 10) / 10, 1.0, 0.5)
