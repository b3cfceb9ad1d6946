"""Densely connected convolutions with GroupNorm (after Huang et al. 2017, arXiv 1608.06993).

BatchNorm mixes the samples of a batch, so GroupNorm takes its place; ReLU is out of place,
since per-sample gradients need the activations. The weights of all convolutions but the stem's
are standardised by default (size 121 has plain ones): without it, every other start did not learn
fine textures and thin lines. The stem's are not, since filters of mean 0 see no brightness.

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from math import gcd

import torch
from torch import Tensor, nn

from medfusion.models.blocks.generated import run
from medfusion.models.blocks.standardized import StandardizedConv2d

Norm = Callable[[int], nn.Module]
"""Makes the norm of so many channels."""
Convolution = type[nn.Conv2d]
"""Makes a convolution: plain, or of standardised weights."""


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm for any number of channels: at most 32 groups, of at least 8 channels.

    Groups of one channel would erase a map's mean, and on the few pixels of the last stage they
    divide by almost nothing: bfloat16 gradients were then wrong by half.
    """
    groups = gcd(32, channels // 8) if channels % 8 == 0 else 1
    return nn.GroupNorm(groups, channels)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 to a bottleneck, norm, ReLU, 3x3: adds ``growth`` channels to the input."""

    def __init__(
        self,
        channels: int,
        growth: int,
        bottleneck: int,
        norm: Norm = group_norm,
        convolution: Convolution = StandardizedConv2d,
    ) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = convolution(channels, bottleneck, 1, bias=False)
        self.norm2 = norm(bottleneck)
        self.conv2 = convolution(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, C + growth, H, W]."""
        new = self.conv1(torch.relu(self.norm1(x_BCHW)))
        new = self.conv2(torch.relu(self.norm2(new)))
        return torch.cat([x_BCHW, new], dim=1)


class DenseStage(nn.Sequential):
    """A few dense layers at one resolution; ``channels`` is the width of its output."""

    def __init__(
        self,
        channels: int,
        *,
        layers: int,
        growth: int,
        bottleneck: int,
        norm: Norm = group_norm,
        convolution: Convolution = StandardizedConv2d,
    ) -> None:
        super().__init__(
            *(
                DenseLayer(channels + i * growth, growth, bottleneck, norm, convolution)
                for i in range(layers)
            )
        )
        self.channels = channels + layers * growth


class Transition(nn.Module):
    """Norm, ReLU, halve the resolution, 1x1 to about half the channels (a multiple of 8)."""

    def __init__(
        self,
        channels: int,
        norm: Norm = group_norm,
        convolution: Convolution = StandardizedConv2d,
    ) -> None:
        super().__init__()
        self.channels = 8 * ((channels + 15) // 16)
        self.norm = norm(channels)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.conv = convolution(channels, self.channels, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, channels, ceil(H / 2), ceil(W / 2)]."""
        return self.halve(self.activate(x_BCHW))

    def activate(self, x_BCHW: Tensor) -> Tensor:
        """Return the normed and rectified map [B, C, H, W], the first half of `forward`."""
        return torch.relu(self.norm(x_BCHW))

    def halve(self, active_BCHW: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return [B, channels, ceil(H / 2), ceil(W / 2)], the second half of `forward`.

        ``embedding`` [B, l] is for a generated convolution.
        """
        # a 1x1 convolution commutes with the mean, so pooling first costs a quarter
        return run(self.conv, self.pool(active_BCHW), embedding)


class Stem(nn.Module):
    """3x3 convolutions that bring an image to the first stage's resolution.

    Parameters
    ----------
    image_channels, channels
        Width of the image and of the output.
    stride
        1, 2 or 4: see `stem_stride`.
    """

    def __init__(self, image_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = channels // 2 if stride == 4 else channels
        self.conv1 = nn.Conv2d(image_channels, first, 3, min(stride, 2), 1, bias=False)
        self.norm1 = group_norm(first)
        self.conv2 = nn.Conv2d(first, channels, 3, 2, 1, bias=False) if stride == 4 else None
        self.norm2 = group_norm(channels) if stride == 4 else None

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return [B, channels, ceil(H / stride), ceil(W / stride)]."""
        x_BCHW = torch.relu(self.norm1(self.conv1(image_BCHW)))
        if self.conv2 is not None and self.norm2 is not None:
            x_BCHW = torch.relu(self.norm2(self.conv2(x_BCHW)))
        return x_BCHW


def stem_stride(image_size: tuple[int, int]) -> int:
    """Largest stride of 1, 2, 4 that leaves the last of four stages at least 2 pixels a side.

    From 64 px on the stages lie at 1/4, 1/8, 1/16 and 1/32 of the image, as in DenseNet.
    """
    side = min(image_size)
    return next(stride for stride in (4, 2, 1) if side >= 16 * stride or stride == 1)
