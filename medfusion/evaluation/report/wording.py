"""How figures and units are written in the report; None becomes a dash."""

from collections.abc import Sequence

DASH = "\N{EN DASH}"


def score(value: float | None) -> str:
    """Write a figure in [0, 1] with three decimals."""
    return DASH if value is None else f"{value:.3f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """Write an interval of scores."""
    return DASH if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def number(value: float | None) -> str:
    """Write a number with up to four significant digits; whole ones in full, with commas."""
    if value is None:
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    text = f"{value:.4g}"
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa}e{int(power)}" if exponent else text


def epsilon(value: float | None) -> str:
    """Write an epsilon with two decimals."""
    return DASH if value is None else f"{value:.2f}"


def data_size(count: float | None) -> str:
    """Write a number of bytes in the largest unit that keeps it at 1 or more."""
    if count is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """Write a time in seconds, minutes or hours."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun, as in ``1 round`` or ``20 rounds``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(words: Sequence[str]) -> str:
    """Write words as in ``a, b and c``."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
