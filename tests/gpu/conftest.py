"""Checks for a machine with a GPU, with one command: ``pytest tests/gpu -s`` (a minute or two).

Elsewhere they are skipped; the same checks run on the CPU in ``tests/training/test_on_cpu.py``.
"""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use: run `pytest tests/gpu` on a machine with one")
    return torch.device("cuda")
