"""Writes TOML; the standard library only reads it."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(table: Mapping[str, Any]) -> str:
    """Write nested mappings: one at the top, or below ``features`` or ``columns``, is a section.

    Any other mapping is written inline, after the section's plain values.
    """
    lines: list[str] = []
    _append_section(lines, (), table)
    return "\n".join(lines).strip() + "\n"


def toml_key(key: str) -> str:
    """Write a key, quoted where it must be."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def toml_value(value: Any) -> str:
    """Write a string, number, boolean, list or inline table."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)  # JSON strings and booleans are TOML ones
    return repr(value)


def _append_section(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    nested = {key: value for key, value in table.items() if _is_section(path, value)}
    own = {key: value for key, value in table.items() if key not in nested}
    if own and path:
        lines += ["", f"[{'.'.join(map(toml_key, path))}]"]
    lines += [f"{toml_key(key)} = {toml_value(value)}" for key, value in own.items()]
    for key, value in nested.items():
        _append_section(lines, (*path, key), value)


def _is_section(path: tuple[str, ...], value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return not path or (len(path) == 1 and path[0] in ("features", "columns"))
