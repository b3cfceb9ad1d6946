"""A small site folder of a task of detection, with boxes as a table or as COCO JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from site_folder import make_site

from medfusion.data.check import check_site
from medfusion.data.site import open_site
from medfusion.data.studies import Studies, read_studies
from medfusion.errors import DataError

WIDTH, HEIGHT = 24, 20  # of the images that site_folder writes
HEADER = "study_id,patient_id,image,notes,age,smoker,sex"
ROWS = ("s3,p1,a.png,,60,1,F", "s1,p1,,,61,,F", "s2,p2,b.png,,,0,M")
BOXES = ("s3,icu,2,3,6,5", "s2,death,12,10,12,10", "s3,death,0,0,1.5,2")


def make(
    folder: Path,
    boxes: tuple[str, ...] = BOXES,
    *,
    rows=ROWS,
    header=HEADER,
    most: int = 3,
    box_header: str = "study_id,label,x,y,width,height",
) -> Path:
    site = make_site(folder, rows, header=header)
    task = (folder / "task.toml").read_text().replace('"multilabel"', '"detection"')
    (folder / "task.toml").write_text(task + f"[boxes]\nmost = {most}\n")
    (site / "boxes.csv").write_text("\n".join([box_header, *boxes]) + "\n")
    return site


def write_coco(site: Path, **changes: Any) -> Path:
    """Write the boxes of `BOXES` as COCO JSON, with other content where ``changes`` say so."""
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "icu"}, {"id": 2, "name": "death"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [2, 3, 6, 5]},
            {"image_id": 8, "category_id": 2, "bbox": [12, 10, 12, 10]},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 1.5, 2]},
        ],
    }
    (site / "boxes.json").write_text(json.dumps({**coco, **changes}))
    toml = site / "site.toml"
    if "boxes.json" not in toml.read_text():
        toml.write_text(toml.read_text() + '[files]\nboxes = "boxes.json"\n')
    return site


def read(site: Path) -> Studies:
    return read_studies(open_site(site))


def refused(site: Path) -> str:
    with pytest.raises(DataError) as error:
        read(site)
    return str(error.value)


def findings(site: Path) -> dict[str, str]:
    """Of each code the last finding: severity, place and message."""
    return {f.code: f"{f.severity} {f.where}: {f.message}" for f in check_site(site).findings}
