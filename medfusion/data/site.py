"""The site folder: ``site.toml`` and what it points to."""

import codecs
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from medfusion.data.dicom_tags import tag_of, tag_problem
from medfusion.data.findings import Finding, nearest
from medfusion.data.task import (
    BinaryFeature,
    CategoricalFeature,
    NumericFeature,
    Task,
)
from medfusion.errors import ConfigError, DataError
from medfusion.options import FileSchema, Options, read_toml

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
SPLIT_NAMES = ("train", "calibration", "test")


class SiteInfo(Options):
    """Section ``[site]``: the name, where task and state are, and what is declared of patients.

    ``label_coverage`` is the share of training patients for whom a label is known, 0 for a label
    that the site never records; 1 where none is given. Like ``patients_public`` it is declared
    once, public, and not counted from the data.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    task: Path
    state: Path | None = None
    patients_public: int = Field(ge=1)
    label_coverage: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default={})

    def coverage_of(self, labels: Sequence[str]) -> tuple[float, ...]:
        """Return the declared share of each of ``labels``."""
        return tuple(self.label_coverage.get(label, 1.0) for label in labels)


class FilesOptions(Options):
    """Section ``[files]``: the table of studies, the folder of images, the boxes drawn on them.

    ``boxes`` is a table, or COCO JSON (``.json``); it is read where the task is of detection.
    ``delimiter``, ``decimal`` and ``encoding`` describe a text table; Parquet has its own types.
    """

    studies: Path = Path("studies.csv")
    images: Path = Path("images")
    boxes: Path = Path("boxes.csv")
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if self.studies.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(f"studies: expected a file ending in {', '.join(TABLE_SUFFIXES)}")
        if self.boxes.suffix.lower() not in (*TABLE_SUFFIXES, ".json"):
            raise ValueError(f"boxes: expected a file ending in .json, {', '.join(TABLE_SUFFIXES)}")
        if self.delimiter == self.decimal:
            raise ValueError("delimiter and decimal must differ")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError("encoding: unknown; expected utf-8, cp1252, latin-1, ...") from None
        return self


def _as_cell(value: Any) -> Any:
    """Turn a TOML scalar into the text of a cell, so that numbers may be written bare."""
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) else value


Cell = Annotated[str, BeforeValidator(_as_cell)]


class ColumnOptions(Options):
    """Section ``[columns.X]``: how the local table says what the task calls X.

    ``from`` names the local column; an empty name declares that this site does not have it. A
    feature may come from a tag of the study's DICOM image: ``from = "dicom:ViewPosition"``.
    ``map`` replaces whole cells (an empty replacement means missing) before a number is read;
    a number then becomes ``number * scale + offset``.
    """

    source: str | None = Field(default=None, alias="from")
    map: dict[str, Cell] = Field(default={})
    scale: float = 1.0
    offset: float = 0.0

    @model_validator(mode="after")
    def _scale_keeps_information(self) -> Self:
        if self.scale == 0:
            raise ValueError("scale must not be 0")
        return self


class PolicyOptions(Options):
    """Section ``[policy]``: what this hospital allows.

    ``min_patients`` is the smallest number of patients about whom anything may leave.
    ``allow_without_privacy`` lets a coordinator run without differential privacy, which hands
    out exact counts and updates; a simulation may do so in any case. With ``approve`` "ask" a run
    waits until somebody at the hospital approves it. ``min_masked_sites`` demands secure
    aggregation: the fewest sites whose sum of updates a coordinator may learn; 0 demands none.
    """

    max_epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    min_patients: int = Field(default=10, ge=1)
    allow_without_privacy: bool = False
    approve: Literal["always", "ask"] = "always"
    min_masked_sites: int = Field(default=0, ge=0)


class ComputeOptions(Options):
    """Section ``[compute]``: where and how this hospital computes; ``threads`` 0 = all cores."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    physical_batch: int = Field(default=32, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(default=0, ge=0)


class SiteConfig(Options):
    """The whole of ``site.toml``."""

    file_schema: FileSchema = 1
    site: SiteInfo
    files: FilesOptions = FilesOptions()
    columns: dict[str, ColumnOptions] = Field(default={})
    policy: PolicyOptions = PolicyOptions()
    compute: ComputeOptions = ComputeOptions()


@dataclass(frozen=True)
class Site:
    """A site folder with its configuration and task; no patient data."""

    folder: Path
    config: SiteConfig
    task: Task

    @property
    def name(self) -> str:
        """The public name of the hospital."""
        return self.config.site.name

    @property
    def state(self) -> Path:
        """The only folder that MedFusion writes to on behalf of this site."""
        state = self.config.site.state
        if state is None:
            return self.folder.with_name(self.folder.name + ".state")
        return self._beside_toml(state)

    @property
    def table(self) -> Path:
        """The table of studies."""
        return self._beside_toml(self.config.files.studies)

    @property
    def images(self) -> Path:
        """The folder that the table's image names are relative to."""
        return self._beside_toml(self.config.files.images)

    @property
    def boxes(self) -> Path:
        """The file of boxes."""
        return self._beside_toml(self.config.files.boxes)

    def _beside_toml(self, path: Path) -> Path:
        return Path(os.path.normpath(self.folder / path))


def open_site(folder: Path) -> Site:
    """Read ``site.toml`` and its task, and make sure that mapping and table can be used.

    Raises
    ------
    ConfigError
        If a TOML file is missing or refused, or the mapping does not suit the task.
    DataError
        If the folder or the table does not exist.
    """
    site = load_site(folder)
    problems = mapping_findings(site)
    if problems:
        lines = "; ".join(f"{problem.where}: {problem.message}" for problem in problems)
        raise ConfigError(f"{site.folder / 'site.toml'}: {lines}")
    if not site.table.is_file():
        raise DataError(f"site {site.name!r}: {site.table}: no such table; see [files] studies")
    return site


def load_site(folder: Path) -> Site:
    """Read ``site.toml`` and its task; unlike `open_site`, look at nothing else.

    Raises
    ------
    ConfigError
        If a TOML file is missing or refused.
    DataError
        If the folder does not exist.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such site folder")
    path = folder / "site.toml"
    config = SiteConfig.parse(read_toml(path), where=str(path))
    return Site(folder, config, Task.load(Path(os.path.normpath(folder / config.site.task))))


def task_columns(task: Task) -> tuple[str, ...]:
    """Every table column that a task names, ids first."""
    parts = [task.split.column, *(part.column for part in (task.image, task.text) if part)]
    return (
        task.task.study,
        task.task.patient,
        *(name for name in parts if name),
        *task.features,
        *task.label_columns,
    )


def mapping_findings(site: Site) -> list[Finding]:
    """Say where ``[columns.*]`` and labels do not suit the task; every finding is an error."""
    known = task_columns(site.task)
    where, labels = "[site] label_coverage", site.task.labels.names
    findings = [
        Finding("error", "bad-mapping", where, f"{name!r} is no label{nearest(name, labels)}")
        for name in site.config.site.label_coverage
        if name not in labels
    ]
    for name, column in site.config.columns.items():
        where = f"[columns.{name}]"
        if name not in known:
            problems = [f"the task has no column of this name{nearest(name, known)}"]
        else:
            problems = _mapping_problems(name, column, site.task)
        findings += [Finding("error", "bad-mapping", where, problem) for problem in problems]
    return findings


def _mapping_problems(name: str, column: ColumnOptions, task: Task) -> list[str]:
    """Say what is wrong with one section."""
    feature = task.cells_of(name)
    problems = []
    if column.source == "" and name in (task.task.patient, task.task.study):
        problems.append("every site needs this column, so `from` must name it")
    tag = tag_of(column.source)
    if tag is not None and (name not in task.features or task.image is None):
        problems.append("tags of DICOM images are for features, of tasks with [image]")
    elif tag is not None and (wrong_tag := tag_problem(tag)) is not None:
        problems.append(wrong_tag)
    if (column.scale, column.offset) != (1, 0) and not isinstance(feature, NumericFeature):
        problems.append("scale and offset are for numeric columns")
    if isinstance(feature, NumericFeature):
        wrong = [v for v in column.map.values() if v and not _is_number(v)]
        expected = "a number"
    elif isinstance(feature, BinaryFeature):
        wrong = [v for v in column.map.values() if v not in ("0", "1", "")]
        expected = "0 or 1"
    elif isinstance(feature, CategoricalFeature) or name == task.split.column:
        values = feature.values if isinstance(feature, CategoricalFeature) else SPLIT_NAMES
        wrong = [v for v in column.map.values() if v not in (*values, "")]
        expected = ", ".join(values)
    else:
        wrong, expected = list(column.map), ""
    if wrong and expected:
        problems.append(f"map leads to {wrong[0]!r}; expected {expected} or '' (missing)")
    elif wrong:
        problems.append("map is for features, labels and the split")
    return problems


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
