"""Weights of torchvision's networks, folded for ours.

They expect coloured images of a certain mean and deviation, ours are grey or coloured in [-1, 1];
and their BatchNorm has statistics, of which constants become.

Shapes: C channels, k side of a kernel.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# What torchvision's weights expect of an image in [0, 1]: mean and deviation of red, green, blue.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stem_weights(weight: Tensor, image_channels: int) -> Tensor:
    """Fold the normalisation of an image in [-1, 1] into weights [C, 3, k, k] of the first layer.

    Those of a further channel come last, which is 1 on the image (see `with_inside`).
    """
    weight = weight.double()
    mean = torch.tensor(_MEAN, dtype=torch.float64)[:, None, None]
    deviation = torch.tensor(_DEVIATION, dtype=torch.float64)[:, None, None]
    colours = weight / (2 * deviation)
    if image_channels == 1:
        colours = colours.sum(dim=1, keepdim=True)
    inside = (weight * (0.5 - mean) / deviation).sum(dim=1, keepdim=True)
    return torch.cat([colours, inside], dim=1).float()


def with_inside(image_BCHW: Tensor) -> Tensor:
    """Return an image with a further channel that is 1 on it and, like all padding, 0 beside it.

    Its weights hold what a shift of the image's grey levels adds; a bias would add as much at the
    border, where part of the window lies outside.
    """
    return torch.cat([image_BCHW, torch.ones_like(image_BCHW[:, :1])], dim=1)


def folded_norm(
    ours: str, state: Mapping[str, Tensor], part: str, *, epsilon: float
) -> dict[str, Tensor]:
    """Return the scale and shift that the BatchNorm ``part`` with these statistics amounts to."""
    gain, bias, mean, variance = (
        state[f"{part}.{kind}"].double()
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / (variance + epsilon).sqrt()
    shift = bias - mean * scale
    return {f"{ours}.scale": scale.float(), f"{ours}.shift": shift.float()}
