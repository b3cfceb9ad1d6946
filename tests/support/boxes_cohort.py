"""Two sites of radiographs with a bright square, whose label a clinical value tells."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
TASK = f"""
[task]
name = "squares"
kind = "detection"
[split]
calibration = 0.1
test = 0.4
[image]
size = [{SIDE}, {SIDE}]
[boxes]
most = 2
[features.sign]
kind = "numeric"
low = -1
high = 1
[labels]
names = ["above", "below"]
"""
CONFIG = """
[run]
name = "squares"
task = "task.toml"
rounds = 2
[simulation]
sites = "sites/*"
[model]
name = "mdf_net"
proposals = 8
[selection]
method = "none"
[training]
steps = 6
batch_size = 8
[privacy]
enabled = false
"""


def write_boxes(folder: Path, *, patients: int = 24) -> Path:
    """Write the cohort and return the path of its config; some studies have no square."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.toml").write_text(TASK)
    (folder / "config.toml").write_text(CONFIG)
    for number, name in enumerate(("north", "south")):
        rng = np.random.default_rng(number)
        site = folder / "sites" / name
        (site / "images").mkdir(parents=True)
        rows, boxes = ["study_id,patient_id,image,sign"], ["study_id,label,x,y,width,height"]
        for patient in range(patients):
            sign = rng.uniform(-1, 1)
            pixels = rng.normal(60, 30, (2 * SIDE, 2 * SIDE))  # stored twice as large
            if patient % 6:
                width, height = rng.integers(20, 32, 2)
                x, y = rng.integers(0, 2 * SIDE - 32, 2)
                pixels[y : y + height, x : x + width] += 130
                label = "above" if sign > 0 else "below"
                boxes.append(f"s{patient},{label},{x},{y},{width},{height}")
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(site / "images" / f"{patient}.png")
            rows.append(f"s{patient},p{patient},{patient}.png,{sign:.3f}")
        (site / "studies.csv").write_text("\n".join(rows) + "\n")
        (site / "boxes.csv").write_text("\n".join(boxes) + "\n")
        (site / "site.toml").write_text(
            f'[site]\nname = "{name}"\ntask = "../../task.toml"\n'
            f"patients_public = {patients // 2}\n[policy]\nmax_epsilon = 100\n"
        )
    return folder / "config.toml"
