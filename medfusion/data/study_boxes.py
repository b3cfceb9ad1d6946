"""Boxes join their studies, and say which labels those have.

Legend: N studies, L labels.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfusion.data.box_files import read_box_file
from medfusion.data.boxes import Boxes, place_boxes
from medfusion.data.findings import Cells, Finding
from medfusion.data.site import Site
from medfusion.errors import DataError

if TYPE_CHECKING:
    from medfusion.data.studies import Studies


def add_boxes(
    site: Site, studies: "Studies", where: dict[str, str]
) -> tuple["Studies", list[Finding]]:
    """Return the studies of a task of detection with their boxes, and what is wrong with these.

    A study has a label if a box says so. Where the table has a column for the label, both must
    say the same: 1 with a box, 0 without; blank (nobody looked for it) goes without as well.

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
        return replace(studies, boxes=Boxes.none(len(studies), most)), [finding]
    boxes, wrong = place_boxes(
        drawn, study_ids=studies.study_ids, images=studies.images, names=names, most=most
    )
    labels, contradictions = _labels(studies, boxes.present(len(names)), names, where)
    return replace(studies, boxes=boxes, labels=labels), [*findings, *wrong, *contradictions]


def _labels(
    studies: "Studies", present: NDArray[np.bool_], names: tuple[str, ...], where: dict[str, str]
) -> tuple[NDArray[np.float32], list[Finding]]:
    """Return labels [N, L], of boxes where the table has no column, and contradictions."""
    seen = np.array([image is not None for image in studies.images], dtype=bool)
    labels, findings = studies.labels.copy(), []
    for number, name in enumerate(names):
        boxed = present[:, number]
        if name not in where:
            labels[:, number] = np.where(seen, boxed.astype(np.float32), np.nan)
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
