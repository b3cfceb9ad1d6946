"""What is read of a map under boxes is what torchvision reads."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as of_torchvision

from medfusion.models.blocks.roi_align import roi_align, roi_align_levels


def draw_boxes(batch: int, count: int, height: int, width: int, draw: torch.Generator):
    sides = torch.tensor([width, height], dtype=torch.float64)
    ends = torch.rand(2, batch, count, 2, generator=draw, dtype=torch.float64) * sides
    return torch.cat([ends.amin(0), ends.amax(0)], dim=-1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 8]), st.integers(0, 2**20))
def test_it_agrees_with_torchvision(height, width, stride, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, height, width, generator=draw, dtype=torch.float64)
    boxes = draw_boxes(3, 5, height * stride, width * stride, draw)
    boxes[0, 0] = 0.0  # padding
    boxes[1, 0] = torch.tensor([0, 0, width * stride, height * stride])  # the whole image
    found = roi_align(x, boxes, bins=7, scale=1 / stride)
    expected = of_torchvision(x, list(boxes), (7, 7), 1 / stride, sampling_ratio=2)
    torch.testing.assert_close(found.flatten(0, 1), expected)


def test_levels_are_those_of_torchvision():
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 3, side, side, generator=draw) for side in (32, 16, 8)]
    boxes = draw_boxes(2, 40, 64, 64, draw).float()
    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=32, canonical_level=3)
    expected = pool({str(i): x for i, x in enumerate(maps)}, list(boxes), [(64, 64)] * 2)
    found = roi_align_levels(maps, boxes, bins=7, strides=(2, 4, 8), largest=32)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_gradients_flow_to_the_map():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[0.5, 0.5, 3.0, 3.0]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, bins=2, scale=1.0), (x,))
