"""Volumes take the whole way: a federation under privacy, and fusions side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call

torch.set_num_threads(1)
TASK = """
[task]
name = "heads"
kind = "regression"
[split]
test = 0.4
[image]
dims = 3
size = [16, 16, 16]
[features.sex]
kind = "categorical"
values = ["F", "M"]
[labels]
names = ["age"]
low = 20
high = 100
unit = "year"
"""
CONFIG = """
[run]
name = "heads"
task = "task.toml"
rounds = 2
[simulation]
sites = "sites/*"
[model]
name = "hyperfusion"
width = 4
stages = 2
[training]
steps = 4
batch_size = 16
learning_rate = 3e-3
augmentation = "light"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two sites of cubes whose brightness is the age; every fifth study lacks its volume."""
    folder = tmp_path / "cohort"
    for number, name in enumerate(("north", "south")):
        rng = np.random.default_rng(number)
        site = folder / "sites" / name
        (site / "images").mkdir(parents=True)
        rows = ["study_id,patient_id,image,sex,age"]
        for patient in range(30):
            age = float(rng.integers(20, 101))
            voxels = rng.normal(2.0 * age, 20, (12, 14, 12)).clip(0, 255).astype(np.uint8)
            np.savez(site / "images" / f"{patient}.npz", volume=voxels)
            image = "" if patient % 5 == 0 else f"{patient}.npz"
            rows.append(f"s{patient},p{patient},{image},{'FM'[patient % 2]},{age}")
        (site / "studies.csv").write_text("\n".join(rows) + "\n")
        (site / "site.toml").write_text(
            f'[site]\nname = "{name}"\ntask = "../../task.toml"\npatients_public = 15\n'
            '[files]\nstudies = "studies.csv"\nimages = "images"\n'
        )
    (folder / "task.toml").write_text(TASK)
    (folder / "config.toml").write_text(CONFIG)
    return folder / "config.toml"


def test_a_private_federation_trains_on_volumes_and_its_model_is_evaluated(config, tmp_path):
    call("simulate", config, "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["sites"]["north"]["epsilon"] <= 8
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["model"]["fusion"] == "hyperfusion"
    site = config.parent / "sites" / "south"
    found = json.loads(call("evaluate", tmp_path / "run" / "model", site, "--json"))
    low, high = found["mae"]["ci95"]
    assert 0 < low < found["mae"]["mean"] < high < 80


def test_fusions_are_compared_on_the_same_volumes(config, tmp_path):
    call(
        "compare", config, "--out", tmp_path / "out", "--regimes", "pooled",
        "--vary", "model.fusion=none,tabular,hyperfusion", "--set", "privacy.enabled=false",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    fusions = [arm["settings"]["model.fusion"] for arm in found["arms"]]
    assert fusions == ["none", "tabular", "hyperfusion"]
    means = [arm["mae"]["mean"] for arm in found["arms"]]
    assert len(set(means)) == 3
    assert len(found["differences"]) == 3
