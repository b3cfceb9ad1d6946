"""Quality check of a site folder: everything that is wrong or odd, in one pass."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.dicom_check import header_findings
from medfusion.data.dicom_tags import tag_of
from medfusion.data.findings import Cells, Finding, Severity, near_misses, plural, rows_text
from medfusion.data.identifiers import identifier_findings
from medfusion.data.images import formats_of, image_problems
from medfusion.data.site import Site, load_site, mapping_findings, task_columns
from medfusion.data.split import TRAIN, describe_torn_patients, patients_in_two_parts, split_of
from medfusion.data.studies import Studies, local_name, validate_studies
from medfusion.data.table import Table, read_table
from medfusion.data.volumes import lacks_orientation
from medfusion.errors import DataError

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class SiteReport:
    """What `check_site` found; counts and names only.

    ``counts`` holds ``studies``, ``patients``, ``training_patients``, ``images`` and ``notes``.
    """

    site: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether anything must be mended before the site can take part."""
        return self.count("error") > 0

    def count(self, severity: str) -> int:
        """How many findings have this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        return {
            "schema": 1,
            "site": self.site,
            "counts": self.counts,
            "findings": [vars(finding) for finding in self.findings],
        }


def check_site(folder: Path, on_image: Callable[[int], None] | None = None) -> SiteReport:
    """Read a whole site folder, images included, and collect every finding; write nothing.

    ``on_image`` is called with the number of images, once for each that was tried.

    Raises
    ------
    ConfigError
        If ``site.toml`` or the task cannot be read: then nothing else makes sense.
    DataError
        If there is no such folder.
    """
    site = load_site(folder)
    findings = mapping_findings(site)
    try:
        table, form = read_table(site.table, site.config.files)
    except DataError as error:
        findings.append(Finding("error", "unreadable-table", site.table.name, str(error)))
        return SiteReport(site.name, {}, tuple(findings))
    studies, content = validate_studies(site, table)
    parts = _parts(site, studies)
    training = len(np.unique(studies.patient_ids[parts == TRAIN]))
    findings += [
        *form,
        *content,
        *_column_findings(site, table),
        *identifier_findings(site, table),
        *_split_findings(site, studies, training),
        *_image_findings(site, studies, table, on_image),
        *_label_findings(site, studies, table),
        *_missing_findings(site, studies, table),
        *_copy_findings(site, table),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    counts = {
        "studies": len(studies),
        "patients": studies.n_patients,
        "training_patients": training,
        "images": sum(path is not None for path in studies.images),
        "notes": sum(note is not None for note in studies.notes),
    }
    return SiteReport(site.name, counts, tuple(findings))


def _parts(site: Site, studies: Studies) -> NDArray[np.int8]:
    """Part of each study as the data say, also where they contradict themselves."""
    if studies.split_column is not None:
        return studies.split_column
    return split_of(studies, site_name=site.name, rule=site.task.split)


def _column_findings(site: Site, table: Table) -> Iterator[Finding]:
    """Headers: none at all, unused ones, and those that may be meant to be another one."""
    if not table.has_header:
        message = "expected a header with column names, found a row that looks like data"
        yield Finding("error", "no-header", f"{table.name}, row 1", message)
        return
    used = {local_name(site, name) for name in task_columns(site.task)}
    unused = [name for name in table.columns if name not in used]
    for name in unused:
        meant = near_misses(name, sorted(used & set(table.columns)))
        if meant:
            message = f"not used, but its name is close to {meant[0]!r}, which is; is it a copy?"
            yield Finding("warning", "similar-column", table.where(name), message)
    if unused and len(unused) < len(table.columns):  # else they may not be names at all
        message = f"{plural(len(unused), 'column')} not used: {', '.join(map(repr, unused))}"
        yield Finding("note", "unused-columns", table.name, message)


def _split_findings(site: Site, studies: Studies, training: int) -> Iterator[Finding]:
    torn = patients_in_two_parts(studies)
    if torn.any():
        message = describe_torn_patients(studies, torn)
        yield Finding("error", "patient-in-two-splits", site.table.name, message)
    declared = site.config.site.patients_public
    where = "site.toml, [site] patients_public"
    if training == 0 and len(studies):
        message = "expected patients to train on, found none in that part of the split"
        yield Finding("error", "no-training-patients", site.table.name, message)
    elif training != declared and len(studies):
        message = (
            f"declares {plural(declared, 'training patient')}, the table has {training:,}; the "
            "declared number sets sampling rate and privacy, so correct it before the first run "
            "and leave it alone afterwards"
        )
        yield Finding("warning", "patients-public", where, message)


def _image_findings(
    site: Site, studies: Studies, table: Table, on_image: Callable[[int], None] | None
) -> Iterator[Finding]:
    """Images that cannot be decoded, what DICOM headers hold, and files that patients share."""
    if site.task.image is None:
        return
    total = len(set(studies.images) - {None})
    report = (lambda: on_image(total)) if on_image else None
    where = table.where(local_name(site, site.task.image.column))
    cells = Cells.absent(where, studies.rows)
    problems = np.array(image_problems(studies.images, site.task.image, report), dtype=np.str_)
    formats = formats_of(site.task.image)
    for problem in sorted(set(problems.tolist()) - {""}):
        message = f"expected a readable {formats} file: {problem}"
        yield from cells.finding(problems == problem, "image-unreadable", message)
    if site.task.image.dims == 3:
        yield from _orientation_findings(studies, cells)
    yield from header_findings(studies.images, where)
    owners = defaultdict(set)
    for path, patient in zip(studies.images, studies.patient_ids, strict=True):
        owners[path].add(patient)
    shared = np.array([bool(path) and len(owners[path]) > 1 for path in studies.images], dtype=bool)
    message = "the same image belongs to several patients, who may be one and the same"
    yield from cells.finding(shared, "image-shared", message, severity="warning")


def _orientation_findings(studies: Studies, cells: Cells) -> Iterator[Finding]:
    """Volumes whose left and right are a guess."""
    lack = [path is not None and lacks_orientation(path) for path in studies.images]
    message = (
        "the NIfTI header does not tell how the volume lies in the patient (qform_code and "
        "sform_code are 0), so that left and right are a guess; write it anew with its "
        "orientation, or make sure that the guess is right"
    )
    guessed = np.array(lack, dtype=np.bool_)
    yield from cells.finding(guessed, "volume-unoriented", message, severity="warning")


def _label_findings(site: Site, studies: Studies, table: Table) -> Iterator[Finding]:
    """Prevalence of each label, and labels that have only one class."""
    if site.task.task.kind == "regression":
        yield from _target_findings(site, studies, table)
        return
    for position, name in enumerate(site.task.labels.names):
        column = local_name(site, site.task.labels.column or name)
        where = table.where(column)
        if column not in table.columns:
            continue  # reported by the reader, or declared
        if site.task.labels.column is not None:
            where += f", class {name!r}"
        values = studies.labels[:, position]
        known, positive = int(np.isfinite(values).sum()), int((values == 1).sum())
        patients = len(np.unique(studies.patient_ids[values == 1]))
        if known == 0:
            message = "known for no study, so this site teaches nothing about it"
            yield Finding("warning", "label-unknown", where, message)
        elif positive in (0, known):
            message = f"no {'positives' if positive == 0 else 'negatives'} among {known:,} known"
            yield Finding("warning", "one-class-label", where, message)
        else:
            message = (
                f"{positive:,} of {known:,} known studies are positive "
                f"({positive / known:.1%}; {plural(patients, 'patient')})"
            )
            yield Finding("note", "label-prevalence", where, message)
    unread = site.task.detects and studies.boxes is None  # reported by the reader
    if len(studies) and not unread and not (studies.labels == 1).any():
        yield _without_positives(site, studies, table)


def _without_positives(site: Site, studies: Studies, table: Table) -> Finding:
    """Refuse a site that teaches nothing; images without boxes teach where nothing is to find."""
    if not site.task.detects:
        message = "expected a study with at least one label 1, found no positives in any label"
        return Finding("error", "no-positives", table.name, message)
    if np.isfinite(studies.labels).any():
        message = "no boxes at all: this site teaches only where nothing is to be found"
        return Finding("warning", "no-positives", site.boxes.name, message)
    message = "expected boxes, or images that were looked at for them, found neither"
    return Finding("error", "no-positives", site.boxes.name, message)


def _target_findings(site: Site, studies: Studies, table: Table) -> Iterator[Finding]:
    """Whether the target of a regression is known at all."""
    (name,) = site.task.label_columns
    column = local_name(site, name)
    if column in table.columns and len(studies) and not np.isfinite(studies.labels).any():
        message = "expected a number in some study, found none: this site teaches nothing"
        yield Finding("error", "no-targets", table.where(column), message)


def _missing_findings(site: Site, studies: Studies, table: Table) -> Iterator[Finding]:
    """How much is missing in each feature, image, note and label."""
    missing = {name: np.isnan(studies.features[:, i]) for i, name in enumerate(site.task.features)}
    if site.task.image:
        missing[site.task.image.column] = np.array([path is None for path in studies.images])
    if site.task.text:
        missing[site.task.text.column] = np.array([note is None for note in studies.notes])
    for i, name in enumerate(site.task.label_columns):
        missing[name] = np.isnan(studies.labels[:, i])
    for name, mask in missing.items():
        source = local_name(site, name)
        if source == "":
            message = "declared as not to be had at this site"
            yield Finding("note", "declared-absent", f"site.toml, [columns.{name}]", message)
        elif (tag := tag_of(source)) is not None:
            message = f"missing in {mask.sum():,} of {len(mask):,} studies ({mask.mean():.1%})"
            severity: Severity = "warning" if mask.all() else "note"
            if mask.any():
                yield Finding(severity, "missing-rate", f"DICOM tag {tag}", message)
        elif source in table.columns and mask.all() and name not in site.task.label_columns:
            yield Finding("warning", "all-missing", table.where(source), "missing in every study")
        elif source in table.columns and mask.any():
            message = f"missing in {mask.sum():,} of {len(mask):,} studies ({mask.mean():.1%})"
            yield Finding("note", "missing-rate", table.where(source), message)


def _copy_findings(site: Site, table: Table) -> Iterator[Finding]:
    """Rows that repeat another one in all but the study id."""
    study = local_name(site, site.task.task.study)
    others = [text for name, text in table.columns.items() if name != study]
    seen: set[tuple[str, ...]] = set()
    copies = []
    for row, record in zip(table.rows, zip(*others, strict=True), strict=False):
        if record in seen:
            copies.append(int(row))
        seen.add(record)
    if copies:
        message = (
            f"{plural(len(copies), 'row')} ({rows_text(copies)}) repeat another one in all but the "
            "study id; a copy counts twice in every figure"
        )
        yield Finding("warning", "copied-row", table.name, message)
