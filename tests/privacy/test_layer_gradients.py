import subprocess
import sys

import pytest
import torch
from opacus import GradSampleModule

from medfusion.models.blocks.standardized import StandardizedConv2d
from medfusion.privacy import layer_gradients

B = 5
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.mark.parametrize(
    "shape",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": 2},
        {"kernel_size": 3, "dilation": 2},
    ],
)
def test_per_sample_gradients_are_those_of_each_sample_alone(shape, monkeypatch):
    used = []
    real = layer_gradients.standardized_conv2d_gradients
    monkeypatch.setitem(
        GradSampleModule.GRAD_SAMPLERS,
        StandardizedConv2d,
        lambda *arguments: used.append(1) or real(*arguments),
    )
    torch.manual_seed(0)
    layer = StandardizedConv2d(3, 4, bias=False, **shape).double()
    x = torch.randn(B, 3, 8, 7, dtype=torch.float64)
    expected = []
    for sample in x:
        layer.zero_grad()
        layer(sample[None]).pow(3).sum().backward()
        expected.append(layer.weight.grad.clone())
    layer.zero_grad()
    hooked = GradSampleModule(layer, loss_reduction="sum")
    hooked(x).pow(3).sum().backward()
    assert used
    torch.testing.assert_close(layer.weight.grad_sample, torch.stack(expected))


@pytest.mark.parametrize(
    "other",
    [{"groups": 2}, {"bias": True}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}],
)
def test_what_it_does_not_compute_is_refused(other):
    layer = StandardizedConv2d(4, 4, 3, **({"bias": False} | other))
    x = torch.randn(B, 4, 8, 8)
    with pytest.raises(ValueError, match="one group"):
        layer_gradients.standardized_conv2d_gradients(layer, [x], layer(x))


def test_under_autocast_they_are_float32_and_add_up_to_the_gradient():
    torch.manual_seed(0)
    layer = StandardizedConv2d(3, 4, 3, padding=1, bias=False)
    x = torch.randn(B, 3, 8, 7)
    hooked = GradSampleModule(layer, loss_reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = hooked(x)
    out.float().pow(3).sum().backward()
    found = layer.weight.grad_sample
    assert found.dtype == torch.float32
    difference = (found.sum(0) - layer.weight.grad).norm()
    assert difference < 0.02 * layer.weight.grad.norm()


def test_the_hooks_bring_the_registration_along():
    code = (
        "import medfusion.privacy.opacus_hooks as hooks\n"
        "from medfusion.models.blocks.standardized import StandardizedConv2d as layer\n"
        "assert layer in hooks.GradSampleHooks.GRAD_SAMPLERS"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
