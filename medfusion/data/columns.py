"""From the text of one column to checked values; each problem becomes a finding."""

import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfusion.data.findings import Cells, Finding
from medfusion.data.site import SPLIT_NAMES, ColumnOptions
from medfusion.data.task import BinaryFeature, CategoricalFeature, Feature, NumericFeature

Floats = NDArray[np.float64]
OUT_OF_RANGE = "out-of-range"  # code of a finding
_SLACK = 1e-9  # share of the range that rounding in scale and offset may add


def read_feature(
    cells: Cells, name: str, feature: Feature, column: ColumnOptions, decimal: str
) -> tuple[Floats, list[Finding]]:
    """Values of a feature, float64 [N]: NaN = missing, binary 0/1, categorical = index."""
    if isinstance(feature, NumericFeature):
        return _read_numeric(cells, name, feature, column, decimal)
    if isinstance(feature, BinaryFeature):
        return read_binary(cells, name, column, decimal)
    return _read_categorical(cells, name, feature, column)


def read_binary(
    cells: Cells, name: str, column: ColumnOptions, decimal: str
) -> tuple[Floats, list[Finding]]:
    """Cells that are 1, 0 or blank, as float64 [N] with NaN for blank."""
    values, unreadable = _numbers(_mapped(cells, column), decimal)
    bad = unreadable | ~(np.isnan(values) | (values == 0) | (values == 1))
    message = (
        f"expected 1, 0 or blank, found something else; correct them or map it in [columns.{name}]"
    )
    return np.where(bad, np.nan, values), cells.finding(bad, "not-binary", message)


def read_split(
    cells: Cells, name: str, column: ColumnOptions
) -> tuple[NDArray[np.int8], list[Finding]]:
    """Train, calibration, test as int8 [N] 0, 1, 2 (anything else: a finding, and 0)."""
    codes = _codes(_mapped(cells, column), {part: i for i, part in enumerate(SPLIT_NAMES)})
    message = (
        f"expected {', '.join(SPLIT_NAMES)}, found something else; correct them or map it "
        f"in [columns.{name}]"
    )
    findings = cells.finding(codes < 0, "bad-split", message)
    return np.maximum(codes, 0).astype(np.int8), findings


def read_ids(cells: Cells) -> tuple[NDArray[np.str_], list[Finding]]:
    """Pseudonyms, str [N]; none may be blank."""
    ids = np.array(cells.text, dtype=np.str_)
    return ids, cells.finding(ids == "", "blank-id", "expected an identifier, found blank")


def read_images(
    cells: Cells, images: Path, allowed: Sequence[Path]
) -> tuple[tuple[Path | None, ...], list[Finding]]:
    """Files or folders that the cells name, relative to ``images``; none where blank or not there.

    A name may not lead outside ``images`` (by ``..`` or as an absolute path), nor outside the
    ``allowed`` folders (through a symbolic link).
    """
    inside = os.path.join(os.path.abspath(images), "")
    roots = tuple(os.path.join(os.path.realpath(root), "") for root in allowed)
    parents: dict[str, str] = {}
    found: list[Path | None] = []
    outside, absent = np.zeros((2, len(cells.text)), dtype=bool)
    for i, name in enumerate(cells.text):
        path = resolved_image(images, name, parents) if name else None
        named = os.path.normpath(os.path.join(inside, name))
        if path is not None and not (named.startswith(inside) and path.startswith(roots)):
            outside[i], path = True, None
        elif path is not None and not _is_there(path):
            absent[i], path = True, None
        found.append(Path(path) if path else None)
    return tuple(found), [
        *cells.finding(
            outside,
            "image-outside",
            "expected an image inside the site folder, found a path that leads outside; images "
            "kept elsewhere need an absolute path in [files] images",
        ),
        *cells.finding(
            absent,
            "image-absent",
            "the named image does not exist, so it counts as missing",
            severity="warning",
        ),
    ]


def _read_numeric(
    cells: Cells, name: str, feature: NumericFeature, column: ColumnOptions, decimal: str
) -> tuple[Floats, list[Finding]]:
    values, unreadable = _numbers(_mapped(cells, column), decimal)
    values = values * column.scale + column.offset
    slack = _SLACK * (feature.high - feature.low)
    beyond = (values < feature.low - slack) | (values > feature.high + slack)
    unit = f" {feature.unit}" if feature.unit else ""
    findings = [
        *cells.finding(
            unreadable,
            "not-a-number",
            f"expected a number (decimal mark {decimal!r}) or blank, found text; correct them, or "
            f'map what means missing to "" in [columns.{name}]',
        ),
        *cells.finding(
            beyond,
            OUT_OF_RANGE,
            f"expected {feature.low:g} to {feature.high:g}{unit}, found values outside; correct or "
            f"blank them, or set scale or offset in [columns.{name}]",
        ),
    ]
    return np.where(beyond, np.nan, np.clip(values, feature.low, feature.high)), findings


def _read_categorical(
    cells: Cells, name: str, feature: CategoricalFeature, column: ColumnOptions
) -> tuple[Floats, list[Finding]]:
    text = _mapped(cells, column)
    codes = _codes(text, {value: i for i, value in enumerate(feature.values)})
    unknown = (codes < 0) & (np.array(text) != "")
    message = (
        f"expected {', '.join(feature.values)} or blank, found something else; correct them or "
        f"map it in [columns.{name}]"
    )
    return np.where(codes < 0, np.nan, codes), cells.finding(unknown, "unknown-category", message)


def _mapped(cells: Cells, column: ColumnOptions) -> list[str]:
    return [column.map.get(text, text) for text in cells.text]


def _codes(text: list[str], codes: Mapping[str, int]) -> NDArray[np.int64]:
    """Index of each cell, -1 where it is not among the known ones."""
    return np.array([codes.get(cell, -1) for cell in text], dtype=np.int64)


def _numbers(text: list[str], decimal: str) -> tuple[Floats, NDArray[np.bool_]]:
    """Float64 [N] with NaN for blank, and bool [N] for cells that hold no finite number."""
    values = np.full(len(text), np.nan)
    unreadable = np.zeros(len(text), dtype=bool)
    for i, cell in enumerate(text):
        if cell:
            number = number_of(cell, decimal)
            unreadable[i] = number is None
            values[i] = np.nan if number is None else number
    return values, unreadable


def number_of(cell: str, decimal: str) -> float | None:
    """Return the finite number that a cell holds, if any; thousands marks are not accepted."""
    if decimal != ".":
        cell = "?" if "." in cell else cell.replace(decimal, ".")
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def resolved_image(images: Path, name: str, parents: dict[str, str]) -> str:
    """Return the real path of an image ``name`` below ``images``, whether it is there or not.

    Real paths of folders are remembered in ``parents``, as images share them.
    """
    parent, base = os.path.split(os.path.join(images, name))
    try:
        if base in ("", ".", "..") or os.path.islink(os.path.join(parent, base)):
            return os.path.realpath(os.path.join(parent, base))
        if parent not in parents:
            parents[parent] = os.path.realpath(parent)
    except ValueError:  # a NUL in the name: no such file
        return os.path.join(os.path.realpath(images), "absent")
    return os.path.join(parents[parent], base)


def _is_there(path: str) -> bool:
    """Whether there is a file, or a folder of files (see `medfusion.data.image_files`)."""
    try:
        mode = os.stat(path).st_mode
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    except (OSError, ValueError):
        return False
