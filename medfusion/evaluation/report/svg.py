"""Line charts and grey images as text that a page holds: no script, no file beside it."""

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

from medfusion.evaluation.report.figures import GRID, INK, MUTED

Range = tuple[float, float]

_WIDTH, _HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 30, 46
_TICKS = 6  # about so many on an axis


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points [n, 2] joined by straight lines; ``name`` is for the legend, empty: left out."""

    points: NDArray[np.float64]
    color: str
    name: str = ""
    filled: bool = False
    dashed: bool = False


def line_chart(
    curves: Sequence[Curve], *, x: str, y: str, x_range: Range, y_range: Range
) -> Markup:
    """Return an SVG chart; every text in it is escaped."""
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="12" fill="{INK}">',
        *_axes(x_range, y_range, x, y),
        *(_path(curve, x_range, y_range) for curve in curves),
        *_legend([curve for curve in curves if curve.name]),
        "</svg>",
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
    points = " ".join(f"{_at_x(x, x_range)},{_at_y(y, y_range)}" for x, y in curve.points)
    fill = f'fill="{curve.color}" fill-opacity="0.25"' if curve.filled else 'fill="none"'
    dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
    return f'<polyline points="{points}" {fill} stroke="{curve.color}" stroke-width="1.8"{dash}/>'


def _axes(x_range: Range, y_range: Range, x: str, y: str) -> list[str]:
    """Return grid lines with their numbers, and the names of the axes."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in _ticks(*x_range):
        at = _at_x(tick, x_range)
        parts.append(_grid_line(at, at, _TOP, bottom))
        parts.append(_text(at, bottom + 16, f"{tick:g}", "middle"))
    for tick in _ticks(*y_range):
        at = _at_y(tick, y_range)
        parts.append(_grid_line(_LEFT, right, at, at))
        parts.append(_text(_LEFT - 7, at + 4, f"{tick:g}", "end"))
    middle = (_TOP + bottom) / 2
    turned = f' transform="rotate(-90 14 {middle})"'
    return [
        *parts,
        _text((_LEFT + right) / 2, _HEIGHT - 8, x, "middle", MUTED),
        _text(14, middle, y, "middle", MUTED, turned),
    ]


def _grid_line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}" stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = INK, transform: str = "") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}"{transform}>'
        f"{escape(text)}</text>"
    )


def _legend(curves: Sequence[Curve]) -> list[str]:
    """Return the names above the chart, from the left."""
    parts, at = [], float(_LEFT)
    for curve in curves:
        parts.append(f'<rect x="{at}" y="10" width="14" height="4" fill="{curve.color}"/>')
        parts.append(_text(at + 20, 17, curve.name, "start"))
        at += 40 + 6.4 * len(curve.name)
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers within a range."""
    rough = (high - low) / _TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]
