"""How the benchmarks' tables show a figure and its interval."""

from typing import Any


def cells(figure: dict[str, Any], sign: str = "") -> tuple[str, str]:
    """Return the mean and the 95% interval of ``{"mean", "ci95"}``, each ``-`` where undefined."""
    ends = figure["ci95"] or []
    return number_text(figure["mean"], sign), " to ".join(number_text(x, sign) for x in ends) or "-"


def gaps_to_first(result: dict[str, Any], key: str) -> list[tuple[str, str]]:
    """Return the `cells` of each arm's difference from the first arm of a comparison."""
    gaps = {pair["a"]: pair[key] for pair in result["differences"] if pair["b"] == 0}
    return [("-", "-"), *(cells(gaps[arm], "+") for arm in range(1, len(result["arms"])))]


def number_text(value: float | None, sign: str = "") -> str:
    """Return a number with three decimals, ``-`` for None; ``sign`` is ``+`` to show it always."""
    return "-" if value is None else format(value, f"{sign}.3f")
