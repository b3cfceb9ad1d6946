"""A site's table as validated arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfusion.data.boxes import Boxes
from medfusion.data.columns import (
    OUT_OF_RANGE,
    read_feature,
    read_ids,
    read_images,
    read_split,
)
from medfusion.data.dicom_tags import tag_cells, tag_of
from medfusion.data.findings import Cells, Finding, near_misses, plural, raise_errors, rows_text
from medfusion.data.labels import label_array
from medfusion.data.site import ColumnOptions, Site
from medfusion.data.study_boxes import add_boxes
from medfusion.data.table import Table, read_table
from medfusion.data.task import Feature, Task


@dataclass(frozen=True, eq=False, repr=False)
class Studies:
    """N studies, sorted by study id; shows only counts of itself.

    Attributes
    ----------
    study_ids, patient_ids
        str [N].
    rows
        int64 [N], spreadsheet rows.
    features
        float64 [N, F] in the order of the task; NaN = missing; binary 0/1; categorical = index
        of the value.
    labels
        float32 [N, L]; NaN = unknown. Of a multiclass task 1 for the class and 0 for the others;
        of a regression the target in its unit.
    images, notes
        N files and texts; None = missing.
    split_column
        int8 [N], 0 train, 1 calibration, 2 test; None where the data bring no split.
    boxes
        Of a task of detection; None of others, and where no boxes could be read.
    """

    study_ids: NDArray[np.str_]
    patient_ids: NDArray[np.str_]
    rows: NDArray[np.int64]
    features: NDArray[np.float64]
    labels: NDArray[np.float32]
    images: tuple[Path | None, ...]
    notes: tuple[str | None, ...]
    split_column: NDArray[np.int8] | None = None
    boxes: Boxes | None = None

    @classmethod
    def none(cls, task: Task) -> Self:
        """Return no study at all, of the shapes that the task gives."""
        boxes = Boxes.none(0, task.most_boxes) if task.detects else None
        return cls(
            study_ids=np.zeros(0, dtype=np.str_),
            patient_ids=np.zeros(0, dtype=np.str_),
            rows=np.zeros(0, dtype=np.int64),
            features=np.zeros((0, len(task.features))),
            labels=np.zeros((0, len(task.labels.names)), dtype=np.float32),
            images=(),
            notes=(),
            boxes=boxes,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Studies({len(self)} studies, {self.n_patients} patients)"

    def content(self, images: Iterable[str]) -> Iterator[bytes]:
        """Yield all that a run reads, for a digest; ``images`` stand for what the files hold."""
        for array in (self.study_ids, self.patient_ids, self.features, self.labels):
            yield np.ascontiguousarray(array).tobytes()
        if self.boxes is not None:
            yield self.boxes.corners.tobytes()
            yield self.boxes.classes.tobytes()
        yield from ((note or "").encode() for note in self.notes)
        yield from (image.encode() for image in images)

    @property
    def n_patients(self) -> int:
        """How many patients these studies come from."""
        return len(np.unique(self.patient_ids))

    def take(self, index: ArrayLike) -> Self:
        """Return the studies at ``index`` (integers, or a bool mask [N])."""
        chosen = np.asarray(index)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        split = self.split_column
        return replace(
            self,
            study_ids=self.study_ids[chosen],
            patient_ids=self.patient_ids[chosen],
            rows=self.rows[chosen],
            features=self.features[chosen],
            labels=self.labels[chosen],
            images=tuple(self.images[i] for i in chosen),
            notes=tuple(self.notes[i] for i in chosen),
            split_column=None if split is None else split[chosen],
            boxes=None if self.boxes is None else self.boxes.take(chosen),
        )


def read_studies(site: Site) -> Studies:
    """Read, validate and sort the studies of a site.

    Raises
    ------
    DataError
        Listing what is wrong by file, rows and column: missing columns, values out of range,
        labels other than 0, 1 and blank, doubled study ids, images outside the folder, no rows.
    """
    table, form = read_table(site.table, site.config.files)
    studies, content = validate_studies(site, table)
    raise_errors([*form, *content], site=site.name)
    return studies


def read_unlabelled(site: Site) -> tuple[Studies, list[Finding]]:
    """Read studies of which nothing is learned: columns of labels and split are not looked at.

    A value outside its public range counts as missing.

    Returns
    -------
    tuple
        The studies, all labels unknown, and what a user should know of them.

    Raises
    ------
    DataError
        As `read_studies`, but for what is said above.
    """
    table, form = read_table(site.table, site.config.files)
    studies, content = validate_studies(site, table, labelled=False)
    findings = [
        replace(finding, severity="warning") if finding.code == OUT_OF_RANGE else finding
        for finding in (*form, *content)
    ]
    raise_errors(findings, site=site.name)
    return studies, [finding for finding in findings if finding.severity == "warning"]


def validate_studies(
    site: Site, table: Table, *, labelled: bool = True
) -> tuple[Studies, list[Finding]]:
    """Read what can be read and collect every problem; bad cells become missing ones.

    Unless ``labelled``, labels and boxes are unknown and there is no split, whatever the files say.
    """
    reader, task = _Reader(site, table), site.task
    reader.find_images()
    study_ids, patient_ids = reader.ids(task.task.study), reader.ids(task.task.patient)
    features = [reader.cells_of(name, feature) for name, feature in task.features.items()]
    n = len(table)
    labels = [
        reader.label_cells(name) if labelled else np.full(n, np.nan) for name in task.label_columns
    ]
    studies = Studies(
        study_ids=study_ids,
        patient_ids=patient_ids,
        rows=table.rows,
        features=np.stack(features, axis=1) if features else np.zeros((n, 0)),
        labels=label_array(np.stack(labels, axis=1), task),
        images=tuple(reader.images),
        notes=reader.notes(task.text.column) if task.text else (None,) * n,
        split_column=reader.split() if labelled else None,
    )
    if n == 0:
        reader.report("no-studies", table.name, "expected at least one study, found no rows")
    column = local_name(site, task.task.study)
    reader.findings.extend(_doubled_studies(studies, f"{table.name}, column {column!r}"))
    if task.detects and labelled:
        where = {n: table.where(local_name(site, n)) for n in task.labels.names if reader.has(n)}
        studies, wrong = add_boxes(site, studies, where)
        reader.findings.extend(wrong)
    return studies.take(np.argsort(study_ids, kind="stable")), reader.findings


@dataclass(frozen=True)
class _Reader:
    """Reads the columns of one table, collecting findings."""

    site: Site
    table: Table
    findings: list[Finding] = field(default_factory=list)
    images: list[Path | None] = field(default_factory=list)

    def report(self, code: str, where: str, message: str) -> None:
        self.findings.append(Finding("error", code, where, message))

    def options(self, name: str) -> ColumnOptions:
        return self.site.config.columns.get(name, ColumnOptions())

    def cells(self, name: str) -> Cells:
        """Text of the local column for a task's column; blank if it is absent or declared so."""
        source = local_name(self.site, name)
        tag = tag_of(source) if name in self.site.task.features else None
        if tag is not None:
            return Cells(f"DICOM tag {tag}", self.table.rows, tag_cells(self.images, tag))
        where = self.table.where(source)
        if source in self.table.columns and source:
            return Cells(where, self.table.rows, self.table.columns[source])
        if source:
            mend = f"set `from` in [columns.{name}] of site.toml"
            if name not in (self.site.task.task.study, self.site.task.task.patient):
                mend += ' (`from = ""` if this site does not have it)'
            message = f"no such column{self.table.similar(source)}; {mend}"
            self.report("missing-column", where, message)
        return Cells.absent(where, self.table.rows)

    def ids(self, name: str) -> NDArray[np.str_]:
        cells = self.cells(name)
        ids, findings = read_ids(cells)
        if local_name(self.site, name) in self.table.columns:
            self.findings.extend(findings)
        return ids

    def cells_of(self, name: str, feature: Feature) -> NDArray[np.float64]:
        values, findings = read_feature(
            self.cells(name), name, feature, self.options(name), self.table.decimal
        )
        self.findings.extend(findings)
        return values

    def has(self, name: str) -> bool:
        """Whether the table has the column, or the site says that it should."""
        return local_name(self.site, name) in self.table.columns or bool(self.options(name).source)

    def label_cells(self, name: str) -> NDArray[np.float64]:
        if self.site.task.detects and not self.has(name):  # the boxes tell
            return np.full(len(self.table), np.nan)
        return self.cells_of(name, self.site.task.label_cells)

    def find_images(self) -> None:
        """Look for the images, before columns that may be taken from their tags."""
        if self.site.task.image is None:
            self.images.extend([None] * len(self.table))
            return
        cells = self.cells(self.site.task.image.column)
        # A relative folder must stay at the site; an absolute one is the hospital's own choice.
        chosen = [self.site.images] if self.site.config.files.images.is_absolute() else []
        images, findings = read_images(cells, self.site.images, [self.site.folder, *chosen])
        self.images.extend(images)
        self.findings.extend(findings)

    def notes(self, name: str) -> tuple[str | None, ...]:
        return tuple(text or None for text in self.cells(name).text)

    def split(self) -> NDArray[np.int8] | None:
        """Read the split that the data bring; a site without the column is split by hash."""
        name = self.site.task.split.column
        if name is None or local_name(self.site, name) == "":
            return None
        source = local_name(self.site, name)
        absent = source not in self.table.columns and self.options(name).source is None
        if absent and not near_misses(source, self.table.columns):
            message = "no such column, so patients are split by hash"
            self.findings.append(Finding("warning", "no-split", self.table.where(source), message))
            return None
        codes, findings = read_split(self.cells(name), name, self.options(name))
        self.findings.extend(findings)
        return codes


def local_name(site: Site, name: str) -> str:
    """Name the local column for a task's column; empty if the site declares that it has none."""
    column = site.config.columns.get(name)
    return name if column is None or column.source is None else column.source


def _doubled_studies(studies: Studies, where: str) -> list[Finding]:
    ids, index, counts = np.unique(studies.study_ids, return_inverse=True, return_counts=True)
    doubled = (counts[index] > 1) & (studies.study_ids != "")
    if not doubled.any():
        return []
    n = int(((counts > 1) & (ids != "")).sum())
    message = (
        f"expected one row for each study, found {plural(n, 'study id')} on several rows "
        f"({rows_text(studies.rows[doubled])}); keep one row of each, or give the others an id of "
        "their own"
    )
    return [Finding("error", "duplicate-study", where, message)]
