"""What a map holds under boxes, with the batch kept in front.

The operator of torchvision returns rows of all images in one dimension, which would make a box
the unit of privacy in every layer behind it. Here the same means of bilinear samples (He et al.
2017, arXiv 1703.06870) are two products of matrices for each image: an upright box is sampled
along rows and columns apart.

Shapes: B batch, C channels, H height, W width, R boxes of an image, P bins a side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medfusion.models.blocks.precision import at_least_float32

_SAMPLES = 2  # a side of each bin


def roi_align(x_BCHW: Tensor, boxes_BR4: Tensor, *, bins: int, scale: float) -> Tensor:
    """Return the mean of bilinear samples in each bin of each box, [B, R, C, P, P].

    As ``torchvision.ops.roi_align`` with ``sampling_ratio=2`` and ``aligned=False``, for boxes
    within the image.

    Parameters
    ----------
    x_BCHW
        The map.
    boxes_BR4
        Corners in pixels of the image.
    bins
        P.
    scale
        Pixels of the map for each of the image.
    """
    x_BCHW = at_least_float32(x_BCHW)
    batch, channels, height, width = x_BCHW.shape
    corners = (boxes_BR4 * scale).to(x_BCHW.dtype)
    down_BRPH = _shares(corners[..., 1], corners[..., 3], bins, height)
    across_BRPW = _shares(corners[..., 0], corners[..., 2], bins, width)
    rows = down_BRPH.flatten(1, 2) @ x_BCHW.transpose(1, 2).flatten(2)  # [B, R P, C W]
    lines = rows.reshape(batch, -1, bins * channels, width)
    found = lines @ across_BRPW.transpose(-1, -2)  # [B, R, P C, P]
    return found.reshape(batch, -1, bins, channels, bins).transpose(2, 3)


def _shares(near_BR: Tensor, far_BR: Tensor, bins: int, pixels: int) -> Tensor:
    """Return what each pixel along a side adds to each bin, [B, R, P, pixels]."""
    count = bins * _SAMPLES
    steps = (torch.arange(count, device=near_BR.device, dtype=near_BR.dtype) + 0.5) / count
    length_BR1 = (far_BR - near_BR).clamp(min=1.0)[..., None]
    at_BRS = near_BR[..., None] + length_BR1 * steps
    inside_BRS = at_BRS <= pixels  # a box of less than a pixel is widened, also outwards
    places = torch.arange(pixels, device=near_BR.device, dtype=near_BR.dtype)
    distance = (at_BRS.clamp(0.0, pixels - 1.0)[..., None] - places).abs()
    shares = (1.0 - distance).clamp(min=0.0) * inside_BRS[..., None]
    of_samples = shares.reshape(*near_BR.shape, bins, _SAMPLES, pixels)
    return of_samples.mean(dim=3)


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
        * (level_BR == number)[..., None, None, None]
        for number, (x, stride) in enumerate(zip(maps, strides, strict=True))
    ]
    return torch.stack(found).sum(dim=0)
