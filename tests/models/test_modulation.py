"""What scales and shifts channels, against the formulas written out for one patient."""

import pytest
import torch

from medfusion.models.blocks.modulation import Gates, Modulation
from medfusion.models.spec import InputSpec

SPEC = InputSpec(columns=3, labels=1, image_channels=1, image_size=(16, 16, 16), max_tokens=0)
B, C = 4, 6


def tabular() -> torch.Tensor:
    x = torch.randn(B, 3, SPEC.column_values, generator=torch.Generator().manual_seed(0)).double()
    x[..., 2] = 1.0
    x[:, 1, 2] = 0.0  # not selected
    return x


def read(x: torch.Tensor) -> torch.Tensor:
    """Values, flags and indicators of the selected columns, as a loop would gather them."""
    cells = [x[k, v] * x[k, 2] for k in range(3) for v in (0, 1, 3)]
    return torch.stack(cells)


@pytest.mark.parametrize("sees_image", [False, True])
def test_a_map_is_scaled_and_shifted_by_a_bottleneck_of_columns_and_means(sees_image):
    torch.manual_seed(1)
    layer = Modulation(SPEC, C, sees_image=sees_image).double()
    torch.nn.init.normal_(layer.out.weight)
    x, maps = tabular(), torch.randn(B, C, 2, 3, 4, dtype=torch.float64)
    found = layer(maps, x)
    for i in range(B):
        hidden = layer.columns.tabular.weight @ read(x[i])
        if sees_image:
            hidden = hidden + layer.image.weight @ maps[i].mean(dim=(1, 2, 3))
        a, b = (layer.out.weight @ hidden.relu()).split(C)
        expected = (1 + a)[:, None, None, None] * maps[i] + b[:, None, None, None]
        torch.testing.assert_close(found[i], expected)
    assert (layer.image is not None) == sees_image


def test_gates_lead_from_stage_to_stage():
    torch.manual_seed(2)
    layer = Gates(SPEC, (6, 8, 10)).double()
    x = tabular()
    found = layer(x)
    assert [gate.shape for gate in found] == [(B, 6), (B, 8), (B, 10)]
    for i in range(B):
        a = (layer.columns.tabular.weight @ read(x[i])).relu()
        for gate, step in zip(found, layer.steps, strict=True):
            a = step.weight @ a
            torch.testing.assert_close(gate[i], 1 + a)


@pytest.mark.parametrize("sees_image", [False, True])
def test_the_bottleneck_is_a_seventh_of_the_channels_and_of_what_is_read(sees_image):
    """(4 n + d) / 7, where 4 n are the channels of the published network's map."""
    layer = Modulation(SPEC, 128, sees_image=sees_image)
    assert layer.out.in_features == (128 + 3 * (2 + 1)) // 7
    assert not [name for name, _ in layer.named_parameters() if name.endswith("bias")]
    assert Modulation(SPEC, 4, sees_image=sees_image).out.in_features == 4
