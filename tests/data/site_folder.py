"""A small site folder that tests can bend."""

from pathlib import Path

import numpy as np
from PIL import Image

TASK = """
[task]
name = "chest"
kind = "multilabel"
[split]
{split}
[image]
size = [16, 16]
[text]
max_tokens = 16
[features.age]
kind = "numeric"
low = 0
high = 120
unit = "year"
[features.smoker]
kind = "binary"
[features.sex]
kind = "categorical"
values = ["F", "M"]
[labels]
names = ["icu", "death"]
"""

HEADER = "study_id,patient_id,image,notes,age,smoker,sex,icu,death"
ROWS = (
    "s3,p1,a.png,fever,60,1,F,1,0",
    "s1,p1,,,61,,F,0,",
    "s2,p2,b.png,cough,,0,M,0,1",
    "s4,p3,gone.png,well,30.5,0,,1,0",
)


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_site(
    folder: Path,
    rows: tuple[str, ...] = ROWS,
    *,
    header: str = HEADER,
    extra: str = "",
    split: str = "",
    patients_public: int = 2,
) -> Path:
    """Write task, site.toml, table and two images; return the site folder."""
    site = folder / "north"
    (site / "images").mkdir(parents=True)
    (folder / "task.toml").write_text(TASK.format(split=split))
    (site / "site.toml").write_text(
        f'[site]\nname = "north"\ntask = "../task.toml"\npatients_public = {patients_public}\n'
        + extra
    )
    (site / "studies.csv").write_text("\n".join([header, *rows]) + "\n")
    write_image(site / "images" / "a.png", 1)
    write_image(site / "images" / "b.png", 2)
    return site
