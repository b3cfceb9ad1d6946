"""Site folders with two numbers and two labels each, and a config that trains `logistic` on them.

At ``north`` the first label follows high age, at ``south`` low age, so that a model of one is
wrong at the other.
"""

from pathlib import Path

import numpy as np

TASK = """
[task]
name = "ward"
kind = "multilabel"
bins = 20
[split]
calibration = 0.1
test = 0.3
[features.age]
kind = "numeric"
low = 0
high = 100
[features.dose]
kind = "numeric"
low = 0
high = 100
[labels]
names = ["ill", "dead"]
"""

CONFIG = """
[run]
name = "ward"
task = "task.toml"
rounds = 2
[simulation]
sites = "sites/*"
[model]
name = "logistic"
[training]
steps = 20
learning_rate = 0.5
optimizer = "sgd"
[privacy]
enabled = false
"""


def write_ward(folder: Path, *, patients: int = 60, sites: tuple[str, ...] = ("north", "south")):
    """Write the cohort and return the path of its config; every third patient has two studies."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.toml").write_text(TASK)
    (folder / "config.toml").write_text(CONFIG)
    for number, name in enumerate(sites):
        rng = np.random.default_rng(number)
        rows = ["study_id,patient_id,age,dose,ill,dead"]
        for patient in range(patients):
            for study in range(2 if patient % 3 == 0 else 1):
                age, dose = rng.integers(0, 101, 2)
                sick = age > 50 if number % 2 == 0 else age <= 50
                dead = "" if patient % 7 == 0 else int(dose > 70)
                rows.append(f"s{patient}-{study},p{patient},{age},{dose},{int(sick)},{dead}")
        site = folder / "sites" / name
        site.mkdir(parents=True)
        (site / "studies.csv").write_text("\n".join(rows) + "\n")
        (site / "site.toml").write_text(
            f'[site]\nname = "{name}"\ntask = "../../task.toml"\n'
            f"patients_public = {patients // 2}\n"
        )
    return folder / "config.toml"
