"""What a map holds under boxes, with the batch kept in front.

The operator of torchvision returns rows of all images in one dimension, which would make a box
the unit of privacy in every layer behind it. Here the same samples (He et al. 2017, arXiv
1703.06870) come from `grid_sample`, whose first dimension stays the image.

Shapes: B batch, C channels, H height, W width, R boxes of an image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from medfusion.models.blocks.precision import at_least_float32

_SAMPLES = 2  # a side of each bin


def roi_align(x_BCHW: Tensor, boxes_BR4: Tensor, *, bins: int, scale: float) -> Tensor:
    """Return the mean of bilinear samples in each bin of each box, [B, C, R, bins, bins].

    As ``torchvision.ops.roi_align`` with ``sampling_ratio=2`` and ``aligned=False``, for boxes
    within the image.

    Parameters
    ----------
    x_BCHW
        The map.
    boxes_BR4
        Corners in pixels of the image.
    scale
        Pixels of the map for each of the image.
    """
    x_BCHW = at_least_float32(x_BCHW)
    batch, channels, height, width = x_BCHW.shape
    count, side = boxes_BR4.shape[1], bins * _SAMPLES
    corners = (boxes_BR4 * scale).to(x_BCHW.dtype)
    sizes = (corners[..., 2:] - corners[..., :2]).clamp(min=1.0)
    steps = (torch.arange(side, device=x_BCHW.device, dtype=x_BCHW.dtype) + 0.5) / side
    at = corners[..., None, :2] + sizes[..., None, :] * steps[:, None]  # [B, R, side, 2]
    # A pixel's value is at its index; the grid runs from -1 to 1 over the outer edges.
    extent = torch.tensor([width, height], device=x_BCHW.device, dtype=x_BCHW.dtype)
    inside = (at <= extent).to(x_BCHW.dtype)  # a box of less than a pixel is widened, also outwards
    at = (2.0 * at + 1.0) / extent - 1.0
    across = at[..., 0][:, :, None, :].expand(-1, -1, side, -1)
    down = at[..., 1][:, :, :, None].expand(-1, -1, -1, side)
    grid = torch.stack([across, down], dim=-1).reshape(batch, count * side, side, 2)
    found = grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    found = found.reshape(batch, channels, count, side, side)
    found = found * (inside[:, None, :, :, None, 1] * inside[:, None, :, None, :, 0])
    pooled = avg_pool2d(found.flatten(2, 3), _SAMPLES)
    return pooled.reshape(batch, channels, count, bins, bins)


def roi_align_levels(
    maps: Sequence[Tensor], boxes_BR4: Tensor, *, bins: int, strides: Sequence[int], largest: float
) -> Tensor:
    """Return `roi_align` of each box on the level of a pyramid that suits its size.

    A box whose sides have a geometric mean of ``largest`` pixels or more is looked up on the
    coarsest level, one of half that on the level before, and so on (Lin et al. 2017, arXiv
    1612.03144, equation 1).

    Parameters
    ----------
    maps
        [B, C, H, W], finest first.
    strides
        Pixels of the image for each of a map.
    """
    if len(maps) == 1:
        return roi_align(maps[0], boxes_BR4, bins=bins, scale=1.0 / strides[0])
    area = (boxes_BR4[..., 2] - boxes_BR4[..., 0]) * (boxes_BR4[..., 3] - boxes_BR4[..., 1])
    size = area.clamp(min=1e-6).sqrt()
    coarsest = len(maps) - 1
    level_BR = (coarsest + torch.floor(torch.log2(size / largest) + 1e-6)).clamp(0, coarsest)
    found = [
        roi_align(x, boxes_BR4, bins=bins, scale=1.0 / stride)
        * (level_BR == number)[:, None, :, None, None]
        for number, (x, stride) in enumerate(zip(maps, strides, strict=True))
    ]
    return torch.stack(found).sum(dim=0)
