from dataclasses import replace

import pytest
import torch
from initial_models import SHORT, densenet

from medfusion.models.medfusion_net import SIZES


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Torchvision's cache, empty; size 121 has few layers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    whole = SIZES["121"]
    monkeypatch.setitem(SIZES, "121", replace(whole, streams=replace(whole.streams, layers=SHORT)))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "densenet.pth"
    torch.save(densenet().state_dict(), path)
    return path
