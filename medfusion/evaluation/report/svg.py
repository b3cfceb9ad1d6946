"""Line charts and grey images as text that a page holds: no script, no file beside it.

Colours are the page's own (`report.css`), so that charts follow its light or dark scheme.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

Range = tuple[float, float]

INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--line)"
PALETTE = tuple(f"var(--c{number})" for number in range(8))
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 4", "9 3 2 3 2 3")
"""One for each colour of the palette, for readers (and printers) that do not tell colours apart."""

_WIDTH, _HEIGHT = 440, 272
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 42
_TICKS = 6  # about so many on an axis


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """Points [n, 2] joined by straight lines; ``name`` is for the legend, empty: left out.

    ``sizes`` [n] are radii of dots at the points, in the chart's own units.
    """

    points: NDArray[np.float64]
    color: str
    name: str = ""
    filled: bool = False
    dash: str = ""
    sizes: NDArray[np.float64] | None = None


def line_chart(
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    x_range: Range,
    y_range: Range,
    alt: str,
    whole_x: bool = False,
) -> Markup:
    """Return an SVG chart and its legend; every text in them is escaped.

    ``alt`` says in words what the chart shows; ``whole_x``: numbers on the x axis are whole.
    """
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(alt)}" '
        f'font-size="11.5" fill="{INK}">',
        *_axes(x_range, y_range, x, y, whole_x),
        *(_path(curve, x_range, y_range) for curve in curves),
        "</svg>",
        *_legend([curve for curve in curves if curve.name]),
    ]
    return Markup("".join(parts))  # noqa: S704 -- texts are escaped below, the rest are numbers


def png_uri(image: NDArray[np.float64], low: float, high: float) -> str:
    """Return an image [H, W] as a data URI: ``low`` is black, ``high`` is white."""
    grey = np.clip((image - low) / (high - low), 0, 1) * 255
    return picture_uri(Image.fromarray(grey.round().astype(np.uint8)))


def picture_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _at_x(value: float, x_range: Range) -> float:
    share = (value - x_range[0]) / (x_range[1] - x_range[0])
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)


def _at_y(value: float, y_range: Range) -> float:
    share = (value - y_range[0]) / (y_range[1] - y_range[0])
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 2)


def _path(curve: Curve, x_range: Range, y_range: Range) -> str:
    at = [(_at_x(x, x_range), _at_y(y, y_range)) for x, y in curve.points]
    points = " ".join(f"{x},{y}" for x, y in at)
    fill = f'fill="{curve.color}" fill-opacity="0.25"' if curve.filled else 'fill="none"'
    line = f'<polyline points="{points}" {fill} {_stroke(curve)}/>'
    if curve.sizes is None:
        return line
    dots = (
        f'<circle cx="{x}" cy="{y}" r="{size:.1f}" fill="{curve.color}"/>'
        for (x, y), size in zip(at, curve.sizes, strict=True)
    )
    return line + "".join(dots)


def _stroke(curve: Curve) -> str:
    dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    return f'stroke="{curve.color}" stroke-width="1.8"{dash}'


def _axes(x_range: Range, y_range: Range, x: str, y: str, whole_x: bool) -> list[str]:
    """Return grid lines with their numbers, and the names of the axes."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in _ticks(*x_range, least=1.0 if whole_x else 0.0):
        at = _at_x(tick, x_range)
        parts.append(_grid_line(at, at, _TOP, bottom))
        parts.append(_text(at, bottom + 16, f"{tick:g}", "middle"))
    for tick in _ticks(*y_range):
        at = _at_y(tick, y_range)
        parts.append(_grid_line(_LEFT, right, at, at))
        parts.append(_text(_LEFT - 7, at + 4, f"{tick:g}", "end"))
    middle = (_TOP + bottom) / 2
    turned = f' transform="rotate(-90 12 {middle})"'
    return [
        *parts,
        _text((_LEFT + right) / 2, _HEIGHT - 6, x, "middle", MUTED),
        _text(12, middle, y, "middle", MUTED, turned),
    ]


def _grid_line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}" stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = INK, transform: str = "") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}"{transform}>'
        f"{escape(text)}</text>"
    )


def _legend(curves: Sequence[Curve]) -> list[str]:
    """Return a list below the chart: each line as it is drawn, and its name."""
    if not curves:
        return []
    keys = (
        f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true">'
        f'<line x1="0" x2="28" y1="4" y2="4" {_stroke(curve)}/></svg>{escape(curve.name)}</li>'
        for curve in curves
    )
    return ['<ul class="legend">', *keys, "</ul>"]


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Return round numbers within a range, at least ``least`` apart."""
    rough = max((high - low) / _TICKS, least)
    power = 10.0 ** floor(log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]
