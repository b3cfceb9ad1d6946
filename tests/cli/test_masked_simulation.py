"""A masked run by real Nodes has the model of an open one, to the stated error."""

import numpy as np
import pytest
from command_line import simulated
from safetensors.numpy import load_file
from tabular_cohort import write_ward


@pytest.fixture
def config(tmp_path):
    """Three sites with one study of each patient: which one is drawn differs with the settings."""
    path = write_ward(tmp_path / "cohort", sites=("east", "north", "south"))
    for table in path.parent.glob("sites/*/studies.csv"):
        lines = table.read_text().splitlines()
        table.write_text("\n".join(line for line in lines if "-1," not in line) + "\n")
    return path


@pytest.mark.parametrize("threshold", [2, 3])
def test_masks_change_no_model(config, tmp_path, threshold):
    whole = "training.batch_size=1000"  # so the order of batches, which differs too, is none
    simulated(config, tmp_path / "open", whole)
    masks = f"server.secure_aggregation={{threshold={threshold}}}"
    simulated(config, tmp_path / "masked", whole, masks)
    plain, masked = (
        load_file(tmp_path / run / "model" / "model.safetensors") for run in ("open", "masked")
    )
    assert max(float(np.abs(value).max()) for value in plain.values()) > 0.1
    for name, value in plain.items():
        np.testing.assert_allclose(masked[name], value, rtol=0, atol=1e-5)
