"""Drafting a site.toml from a table and a task."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medfusion.data.guess import Match, guess_format, guess_map, match_columns
from medfusion.data.site import FilesOptions, Site, SiteConfig, task_columns
from medfusion.data.split import TRAIN, split_of
from medfusion.data.studies import validate_studies
from medfusion.data.table import Table, read_table
from medfusion.data.task import Task
from medfusion.errors import DataError, UsageError
from medfusion.toml_text import toml_key, toml_value


def draft_site(folder: Path, *, table: Path, task_path: Path) -> int:
    """Write ``site.toml`` into ``folder`` (made if need be) and return how many TODOs it holds.

    Values of the table enter the draft only as keys of a map whose meaning is evident.

    Raises
    ------
    UsageError
        If a site.toml is already there.
    ConfigError
        If the task is refused.
    DataError
        If the table cannot be read.
    """
    folder, table = Path(os.path.abspath(folder)), Path(os.path.abspath(table))
    path = folder / "site.toml"
    if path.exists():
        raise UsageError(f"{path}: already there and left as it is; move it away to draft anew")
    task = Task.load(task_path)
    if not table.is_file():
        raise DataError(f"{table}: no such table")
    found = guess_format(table)
    options = FilesOptions.parse({"studies": table, **found}, where=str(table))
    content, _ = read_table(table, options)
    draft = _Draft(folder, task, content, match_columns(task, content.columns))
    images = draft.guess_images(table.parent)
    files = {"studies": _relative(table, folder), **images, **found}
    info = {"name": _site_name(folder), "task": _relative(task_path.absolute(), folder)}
    columns = draft.columns()
    config = SiteConfig.parse(
        {"site": {**info, "patients_public": 1}, "files": files, "columns": columns},
        where=str(path),
    )
    patients = _training_patients(Site(folder, config, task), content)
    text = draft.text(info, patients, files, columns)
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:  # never over another one
        file.write(text)
    return text.count("# TODO")


@dataclass(frozen=True)
class _Draft:
    """What has been guessed, and what to say about it, by column."""

    folder: Path
    task: Task
    table: Table
    matches: Mapping[str, Match]
    remarks: dict[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, dict[str, Any]]:
        """Return the ``[columns.*]`` sections that differ from the task, noting remarks."""
        sections: dict[str, dict[str, Any]] = {}
        for name, match in self.matches.items():
            section: dict[str, Any] = {} if match.source == name else {"from": match.source}
            cells = self.table.columns[match.source]
            values, unclear = guess_map(name, self.task, cells, self.table.decimal)
            if values:
                section["map"] = values
            remarks = [] if match.sure else [f"is this {name!r}?"]
            remarks += ["does the map mean the same?"] if values else []
            remarks += (
                [f"{unclear} further values are not what the task expects"] if unclear else []
            )
            if section or remarks:
                sections[name] = section
            if remarks:
                self.remarks[name] = "; ".join(remarks)
        return sections

    def guess_images(self, beside: Path) -> dict[str, str]:
        """Return the folder from which the first named images can be found, if there is one."""
        match = self.matches.get(self.task.image.column) if self.task.image else None
        if match is None:
            return {}
        names = [name for name in self.table.columns[match.source] if name][:20]
        for root in (self.folder / "images", self.folder, beside, beside / "images"):
            if any(os.path.exists(root / name) for name in names if "\0" not in name):
                inside = root.is_relative_to(self.folder)
                return {"images": _relative(root, self.folder) if inside else str(root)}
        self.remarks["images"] = "the folder that the image names are relative to"
        return {"images": "images"}

    def text(
        self,
        info: Mapping[str, str],
        patients: int,
        files: Mapping[str, str],
        columns: Mapping[str, Mapping[str, Any]],
    ) -> str:
        """Write the draft as TOML."""
        lines = [
            "# Drafted by `medfusion site init`; the marked lines need a human.",
            "schema = 1",
            "[site]",
            f"name = {toml_value(info['name'])}  # TODO: the public name, which other sites see",
            f"task = {toml_value(info['task'])}",
            f"patients_public = {patients}  # TODO: training patients under this name and "
            "split; frozen by the first run",
            "",
            "[files]",
        ]
        for key, value in files.items():
            remark = {
                "images": self.remarks.get("images"),
                "encoding": "not UTF-8; is it this one?",
                "decimal": "is this the decimal mark?",
            }.get(key)
            lines.append(f"{key} = {toml_value(value)}" + (f"  # TODO: {remark}" if remark else ""))
        for name, section in columns.items():
            remark = self.remarks.get(name)
            lines += ["", f"[columns.{toml_key(name)}]" + (f"  # TODO: {remark}" if remark else "")]
            lines += [f"{key} = {toml_value(value)}" for key, value in section.items()]
        for name in task_columns(self.task):
            if name not in self.matches:
                lines += ["", *self._unmatched(name)]
        lines += [
            "",
            "[policy]",
            "max_epsilon = 8.0  # TODO: the privacy loss that this hospital never exceeds",
            "delta = 1e-5  # TODO: well below 1 / patients",
            'min_patients = 10\napprove = "always"',
        ]
        return "\n".join(lines) + "\n"

    def _unmatched(self, name: str) -> list[str]:
        if name in (self.task.task.patient, self.task.task.study):
            ask = f"# TODO: name the column that holds {name!r}"
            return [ask, f"# [columns.{toml_key(name)}]", '# from = "..."']
        return [
            f"# TODO: no column looks like {name!r}: name it, or leave it empty if there is none",
            f"# [columns.{toml_key(name)}]",
            '# from = ""',
        ]


def _training_patients(site: Site, table: Table) -> int:
    """Count the training patients under a drafted mapping; at least 1, as a declaration is."""
    studies, _ = validate_studies(site, table)
    parts = studies.split_column
    if parts is None:
        parts = split_of(studies, site_name=site.name, rule=site.task.split)
    return max(1, len(np.unique(studies.patient_ids[parts == TRAIN])))


def _site_name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._")[:64] or "site"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
