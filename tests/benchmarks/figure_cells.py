"""How the benchmarks' tables show a figure and its interval."""

from typing import Any


def cells(figure: dict[str, Any], sign: str = "") -> tuple[str, str]:
    """Return the mean and the 95% interval of ``{"mean", "ci95"}``, each ``-`` where undefined."""
    ends = figure["ci95"] or []
    return number_text(figure["mean"], sign), " to ".join(number_text(x, sign) for x in ends) or "-"


def number_text(value: float | None, sign: str = "") -> str:
    """Return a number with three decimals, ``-`` for None; ``sign`` is ``+`` to show it always."""
    return "-" if value is None else format(value, f"{sign}.3f")
