"""Two sites of patients whose dose tells a class (multiclass) or a number (regression)."""

from pathlib import Path

import numpy as np

TASK = """
[task]
name = "{kind}"
kind = "{kind}"
bins = 20
[split]
calibration = 0.1
test = 0.4
[features.dose]
kind = "numeric"
low = 0
high = 100
[features.noise]
kind = "numeric"
low = 0
high = 1
[labels]
{labels}
"""
LABELS = {
    "multiclass": 'column = "state"\nnames = ["well", "ill", "worse"]',
    "regression": 'names = ["stay"]\nlow = 0\nhigh = 50\nunit = "day"',
}
CONFIG = """
[run]
name = "kinds"
task = "task.toml"
rounds = 3
[simulation]
sites = "sites/*"
[model]
name = "logistic"
[training]
steps = 30
learning_rate = 0.3
optimizer = "sgd"
[privacy]
enabled = false
"""


def write_kind(folder: Path, kind: str, *, patients: int = 120) -> Path:
    """Write the cohort and return the path of its config; some labels are unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.toml").write_text(TASK.format(kind=kind, labels=LABELS[kind]))
    (folder / "config.toml").write_text(CONFIG)
    column = "state" if kind == "multiclass" else "stay"
    for number, name in enumerate(("north", "south")):
        rng = np.random.default_rng(number)
        rows = [f"study_id,patient_id,dose,noise,{column}"]
        for patient in range(patients):
            dose = float(rng.integers(0, 101))
            state = ("well", "ill", "worse")[int(np.clip(dose // 34, 0, 2))]
            stay = np.clip(0.5 * dose + rng.normal(0, 2), 0, 50)
            label = state if kind == "multiclass" else f"{stay:.2f}"
            label = "" if patient % 11 == 0 else label
            rows.append(f"s{patient},p{patient},{dose},{rng.random():.3f},{label}")
        site = folder / "sites" / name
        site.mkdir(parents=True)
        (site / "studies.csv").write_text("\n".join(rows) + "\n")
        (site / "site.toml").write_text(
            f'[site]\nname = "{name}"\ntask = "../../task.toml"\n'
            f"patients_public = {patients // 2}\n[policy]\nmax_epsilon = 100\n"
        )
    return folder / "config.toml"
