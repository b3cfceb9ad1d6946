"""The sensitivity that a step's noise is sized for."""

from typing import Any

import numpy as np
import pytest
import torch
from plans import training_plan
from torch import nn

from medfusion.privacy import dp_sgd
from medfusion.privacy.dp_sgd import PrivateSteps
from medfusion.privacy.keystream import Keystream

PLAN = training_plan(90, 1.0, noise=2.0, clip=0.25)


def test_it_is_the_norm_and_what_float32_sums_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sums of 32 gradients, each off by b^2 2^-24 C, and the rounding of the norms."""
    asked = []

    def noised(values: np.ndarray, **sizes: Any) -> np.ndarray:
        asked.append(sizes)
        return values

    monkeypatch.setattr(dp_sgd, "noised", noised)
    net, rows = nn.Linear(4, 1), torch.ones(90, 4)
    with PrivateSteps(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        PLAN,
        keystream=Keystream(bytes(32)),
        physical_batch=90,
        public_losses=lambda count: net(rows[:count])[:, 0],
    ) as steps:
        steps.step(torch.arange(90), lambda index: net(rows[index])[:, 0])
    (sizes,) = asked
    lost = 2 * 32**2 * 2**-24 + 1e-5
    assert 1 + lost <= sizes["sensitivity"] / PLAN.max_grad_norm <= 1.002
    assert sizes["noise_multiplier"] == PLAN.noise_multiplier
