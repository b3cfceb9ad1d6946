"""Fills a template of this folder and writes the page, which works offline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medfusion.atomic_files import write_atomically


def render_page(template: str, content: Mapping[str, Any], path: Path) -> Path:
    """Write the page that a template makes of its content, whole or not at all; return ``path``.

    Everything is escaped, names of hospitals and labels above all: they come from outside.

    Raises
    ------
    jinja2.UndefinedError
        If the template shows what ``content`` lacks.
    """
    environment = Environment(
        loader=PackageLoader("medfusion.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(content)
    write_atomically(path, page, durable=True)
    return path
