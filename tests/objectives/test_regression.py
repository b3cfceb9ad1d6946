"""Errors of a scaled target, against their formulas."""

import pytest
import torch

from medfusion.objectives.options import HuberLoss, MseLoss
from medfusion.objectives.regression import Regression

AGES = torch.tensor([[20.0], [60.0], [90.0], [0.0]])
KNOWN = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
OUTPUTS = torch.tensor([[-1.0], [0.5], [0.7], [3.0]])  # -1 is 20 years, 1 is 100


def test_the_error_is_a_share_of_half_the_range():
    found = Regression(20, 100, MseLoss()).per_sample_loss(OUTPUTS, AGES, KNOWN)
    assert found.tolist() == pytest.approx([0.0, 0.25, (0.7 - 0.75) ** 2, 0.0], abs=1e-6)


def test_huber_is_half_a_square_and_then_a_line():
    found = Regression(20, 100, HuberLoss(delta=0.1)).per_sample_loss(OUTPUTS, AGES, KNOWN)
    line = 0.1 * (0.5 - 0.05)
    assert found.tolist() == pytest.approx([0.0, line, 0.5 * 0.05**2, 0.0], abs=1e-6)


def test_an_unknown_target_pulls_nowhere_and_leaves_the_denominator():
    outputs = OUTPUTS.clone().requires_grad_()
    loss = Regression(20, 100, MseLoss()).mean_loss(outputs, AGES, KNOWN)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0.25 + 0.0025) / 4)
    assert float(outputs.grad[3]) == 0.0
