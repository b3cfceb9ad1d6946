"""What DenseNet121 has beyond our dense stages, and its weights as torchvision publishes them.

The network is that of Huang et al. 2017 (arXiv 1608.06993). BatchNorm with fixed statistics is an
affine map of each channel, which mixes no samples. It is not trained either: its two constants
per channel are frozen parameters, so that all sides compare them with the other frozen weights.

Shapes: B batch, C channels, H height, W width.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medfusion.models.blocks.densenet import Norm
from medfusion.models.blocks.torchvision_weights import folded_norm, stem_weights, with_inside

_EPSILON = 1e-5  # of torchvision's BatchNorm

_OLD_SPELLING = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_LAYER = re.compile(r"features\.denseblock(\d)\.denselayer(\d+)\.(norm[12]|conv[12])")
_TRANSITION = re.compile(r"features\.transition(\d)\.(norm|conv)")
_OTHERS = {
    "features.conv0": "stem.conv",
    "features.norm0": "stem.norm",
    "features.norm5": "final.norm",
}


class FixedNorm(nn.Module):
    """A fixed affine map of each channel: BatchNorm once its statistics are constants."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(channels), requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, C, H, W] in the type of ``x_BCHW``."""
        normed_BCHW = x_BCHW * self.scale[:, None, None] + self.shift[:, None, None]
        return normed_BCHW.to(x_BCHW.dtype)


class NormReLU(nn.Module):
    """A norm, then ReLU."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        return torch.relu(self.norm(x_BCHW))


class WideStem(nn.Module):
    """7x7 convolution with stride 2, norm, ReLU, 3x3 maximum with stride 2.

    The convolution gets a further channel, see `with_inside`.
    """

    stride = 4

    def __init__(self, image_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_channels + 1, channels, 7, 2, 3, bias=False)
        self.norm = norm(channels)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return [B, channels, ceil(H / 4), ceil(W / 4)]."""
        x_BCHW = self.conv(with_inside(image_BCHW))
        pooled: Tensor = self.pool(torch.relu(self.norm(x_BCHW)))
        return pooled


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of one of torchvision's DenseNets."""
    return "features.conv0.weight" in state and "features.norm5.weight" in state


def from_torchvision(
    state: Mapping[str, Tensor], *, image_channels: int, norm: Literal["batch", "group"]
) -> dict[str, Tensor]:
    """Translate a DenseNet of torchvision to the names and the inputs of our image streams.

    Parameters
    ----------
    state
        Its weights, in the current spelling of names or that of the published file.
    image_channels
        1 (grey: the weights of the three colours are summed) or 3, of images in [-1, 1].
    norm
        ``batch`` folds statistics and affine maps into constants, computed in float64, and with
        them our network gives torchvision's features; ``group`` keeps only the affine maps, to
        start GroupNorm with.
    """
    state = {_OLD_SPELLING.sub(r"\1\2", name): value for name, value in state.items()}
    found = {}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        ours = _our_name(part)
        if ours is None or kind not in ("weight", "bias"):
            continue
        if ours == "stem.conv":
            found["stem.conv.weight"] = stem_weights(value, image_channels)
        elif norm == "group" or ".conv" in ours:
            found[f"{ours}.{kind}"] = value
        elif kind == "weight":
            found |= folded_norm(ours, state, part, epsilon=_EPSILON)
    return found


def _our_name(part: str) -> str | None:
    """Name within our image streams of a layer of torchvision's DenseNet."""
    if layer := _LAYER.fullmatch(part):
        return f"stages.{int(layer[1]) - 1}.{int(layer[2]) - 1}.{layer[3]}"
    if transition := _TRANSITION.fullmatch(part):
        return f"transitions.{int(transition[1]) - 1}.{transition[2]}"
    return _OTHERS.get(part)
