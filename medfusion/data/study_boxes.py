"""Boxes join their studies, and say which labels those have.

Legend: N studies, L labels.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfusion.data.box_files import BoxRows, read_box_file
from medfusion.data.boxes import Boxes, place_boxes
from medfusion.data.findings import Cells, Finding, plural, rows_text
from medfusion.data.site import Site
from medfusion.errors import DataError

if TYPE_CHECKING:
    from medfusion.data.studies import Studies

_SHOWN_CATEGORIES = 8


def add_boxes(
    site: Site, studies: "Studies", where: dict[str, str]
) -> tuple["Studies", list[Finding]]:
    """Return the studies of a task of detection with their boxes, and what is wrong with these.

    A study has a label if a box says so, and lacks it if its image was looked at for it. COCO JSON
    lists such images, and such labels as its categories; a table of boxes cannot, and speaks for
    every image and label. Where the table of studies has a column for the label, both must say the
    same: 1 with a box, 0 without; blank (nobody looked for it) goes without as well. Boxes that
    cannot be read, or were looked for under other names than the task's, are None.

    Parameters
    ----------
    where
        The place of each label that the table has a column for.
    """
    names, most = site.task.labels.names, site.task.most_boxes
    files = [
        (path, str(study))
        for path, study in zip(studies.images, studies.study_ids, strict=True)
        if path is not None
    ]
    try:
        drawn, findings = read_box_file(
            site.boxes,
            site.config.files,
            study_column=site.task.task.study,
            images=site.images,
            study_of_image=files,
        )
    except DataError as error:
        finding = Finding("error", "unreadable-boxes", site.boxes.name, str(error))
        return studies, [finding]
    boxes, wrong = place_boxes(
        drawn, study_ids=studies.study_ids, images=studies.images, names=names, most=most
    )
    findings += wrong
    seen, unlisted = _looked_at(studies, drawn, names)
    if len(where) < len(names):
        findings += unlisted
    labels, contradictions = _labels(studies, boxes.present(len(names)), seen, names, where)
    findings += contradictions
    foreign = _foreign_categories(labels, drawn, names, where)
    if foreign:
        return replace(studies, labels=labels), [*findings, *foreign]
    findings += _counts(boxes, labels, drawn, names, where)
    return replace(studies, boxes=boxes, labels=labels), findings


def _looked_at(
    studies: "Studies", drawn: BoxRows, names: tuple[str, ...]
) -> tuple[NDArray[np.bool_], list[Finding]]:
    """Return whose image was looked at for which label, bool [N, L], and a note of other images."""
    images = np.array([image is not None for image in studies.images], dtype=bool)
    if drawn.listed is None:
        return np.outer(images, np.ones(len(names), dtype=bool)), []
    without = images & ~np.isin(studies.study_ids, drawn.listed.studies)
    seen = np.outer(images & ~without, np.isin(names, drawn.listed.categories))
    if not without.any():
        return seen, []
    message = (
        f"does not list the images of {plural(int(without.sum()), 'study')} "
        f"({rows_text(studies.rows[without])} of the table): they count as not looked at"
    )
    return seen, [Finding("note", "image-not-listed", drawn.where, message)]


def _labels(
    studies: "Studies",
    present: NDArray[np.bool_],
    seen: NDArray[np.bool_],
    names: tuple[str, ...],
    where: dict[str, str],
) -> tuple[NDArray[np.float32], list[Finding]]:
    """Return labels [N, L], of boxes where the table has no column, and contradictions."""
    labels, findings = studies.labels.copy(), []
    for number, name in enumerate(names):
        boxed = present[:, number]
        if name not in where:
            labels[:, number] = np.where(seen[:, number], boxed.astype(np.float32), np.nan)
            continue
        cells = Cells.absent(where[name], studies.rows)
        said = labels[:, number] == 1
        findings += cells.finding(
            boxed & ~said,
            "box-contradicts-label",
            "expected 1 in a study that has a box of this label, found 0 or blank",
        )
        findings += cells.finding(
            said & ~boxed,
            "label-without-box",
            "expected a box of this label in a study that has a 1, found none; blank the cells "
            "where nobody drew boxes",
        )
    return labels, findings


def _foreign_categories(
    labels: NDArray[np.float32], drawn: BoxRows, names: tuple[str, ...], where: dict[str, str]
) -> list[Finding]:
    """Refuse a file that lists images of studies, but tells of no label that it is asked for."""
    listed, asked = drawn.listed, [name for name in names if name not in where]
    if listed is None or not any(listed.studies) or not asked or np.isfinite(labels).any():
        return []
    shown = ", ".join(listed.categories[:_SHOWN_CATEGORIES]) or "none"
    more = len(listed.categories) - _SHOWN_CATEGORIES
    message = (
        f"expected the labels that its images were looked at for ({', '.join(asked)}) among its "
        f"categories, found {shown}{f' and {more} more' if more > 0 else ''}; name the categories "
        "as the task names its labels"
    )
    return [Finding("error", "no-label-among-categories", drawn.where, message)]


def _counts(
    boxes: Boxes,
    labels: NDArray[np.float32],
    drawn: BoxRows,
    names: tuple[str, ...],
    where: dict[str, str],
) -> list[Finding]:
    """Say how many boxes each label has; of one with a column, the check of that says the rest."""
    findings = []
    for number, name in enumerate(names):
        mine = boxes.classes == number + 1
        count, boxed = int(mine.sum()), int(mine.any(axis=1).sum())
        known = int(np.isfinite(labels[:, number]).sum())
        place = f"{drawn.where}, label {name!r}"
        if known == 0 and name not in where:
            message = "known for no study, so this site teaches nothing about it"
            if drawn.listed is not None and name not in drawn.listed.categories:
                message += "; if it was looked for, name it in the file's categories"
            findings.append(Finding("warning", "label-unknown", place, message))
        elif count == 0 and name not in where:
            message = f"no boxes in {plural(known, 'known study')}"
            findings.append(Finding("warning", "one-class-label", place, message))
        else:
            message = f"{plural(count, 'box')} in {boxed:,} of {plural(known, 'known study')}"
            findings.append(Finding("note", "label-boxes", place, message))
    return findings
