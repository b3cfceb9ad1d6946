"""Convolutional encoders for images and volumes: a pre-activation ResNet, and a VGG.

After the networks of HyperFusion (see `medfusion.models.blocks.generated`): GroupNorm in place of
BatchNorm, which mixes patients, and no dropout, whose draws would come from a stream that is
nobody's. What a fusion does inside the encoder reaches it as `Inside`.

Shapes: B batch, C channels, [...] two or three axes of space.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from medfusion.models.blocks.densenet import group_norm
from medfusion.models.blocks.generated import run
from medfusion.models.blocks.inside import Inside, gated


class ResidualStage(nn.Module):
    """Norm, ReLU, 3, norm, ReLU, 3; beside it a pointwise convolution, if the shape changes."""

    def __init__(self, dims: int, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = convolution(dims, channels, out, 3, stride)
        self.norm2 = group_norm(out)
        self.conv2 = convolution(dims, out, out, 3)
        changes = stride > 1 or channels != out
        self.down = convolution(dims, channels, out, 1, stride) if changes else None

    def forward(self, x: Tensor, inside: Inside) -> Tensor:
        """Return [B, out, ...]; the map after the first norm is the one that is modulated."""
        active = torch.relu(inside.modulate(self.norm1(x)))
        beside = x if self.down is None else run(self.down, active, inside.embedding)
        new = run(self.conv1, active, inside.embedding)
        return beside + run(self.conv2, torch.relu(self.norm2(new)), inside.embedding)


class VggStage(nn.Module):
    """3, ReLU, 3, ReLU, halve, norm."""

    def __init__(self, dims: int, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(dims, channels, out, 3)
        self.conv2 = convolution(dims, out, out, 3)
        self.norm = group_norm(out)
        self._stride = stride

    def forward(self, x: Tensor, inside: Inside) -> Tensor:
        """Return [B, out, ...]; the map after the norm is the one that is modulated."""
        x = torch.relu(run(self.conv1, x, inside.embedding))
        x = torch.relu(run(self.conv2, x, inside.embedding))
        return inside.modulate(self.norm(halve(x)))


class Encoder(nn.Module):
    """Maps of an image or a volume.

    Parameters
    ----------
    kind
        ``resnet``: a stem of ``width`` channels and a halving, then stages of twice as many
        channels each, the second and later ones halving. ``vgg``: stages of ``width``,
        2 ``width``, ... channels, each halving. After either a ReLU. The ResNet has no last
        norm: over a whole map it would take from the channels' means, which the head reads,
        what a group of channels has in common, such as how much of a head is dark.
    dims
        2 or 3.
    """

    def __init__(self, kind: str, dims: int, channels: int, *, width: int, stages: int) -> None:
        super().__init__()
        resnet = kind == "resnet"
        self.stem = convolution(dims, channels, width, 3) if resnet else None
        widths = [width * 2 ** (number + resnet) for number in range(stages)]
        inputs = [width if resnet else channels, *widths[:-1]]
        stage = ResidualStage if resnet else VggStage
        self.stages = nn.ModuleList(
            stage(dims, before, after, 1 if number == 0 else 2)
            for number, (before, after) in enumerate(zip(inputs, widths, strict=True))
        )
        self.input_channels = tuple(inputs)
        self.channels = widths[-1]
        self.modulated_channels = inputs[-1] if resnet else widths[-1]

    def map_size(self, image_size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sides of the map that an image or a volume of such sides becomes."""
        cell = 2 ** len(self.stages)
        return tuple(-(-side // cell) for side in image_size)

    def forward(self, x: Tensor, inside: Inside) -> Tensor:
        """Return [B, C, ...] of ``channels`` rectified channels."""
        if self.stem is not None:
            x = halve(self.stem(x))
        factors = inside.factors()
        last = len(self.stages) - 1
        for number, stage in enumerate(self.stages):
            x = gated(x, factors, number)
            apart = Inside(inside.tabular, inside.embedding)
            x = stage(x, inside if number == last else apart)
        return torch.relu(x)


def convolution(dims: int, channels: int, out: int, side: int, stride: int = 1) -> _ConvNd:
    """Return a convolution without bias; its initial weights keep a rectified input's variance."""
    kind = nn.Conv3d if dims == 3 else nn.Conv2d
    layer = kind(channels, out, side, stride=stride, padding=side // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer


def halve(x: Tensor) -> Tensor:
    """Return the maxima over cells of 2 along each axis of space."""
    pool = functional.max_pool3d if x.ndim == 5 else functional.max_pool2d
    halved: Tensor = pool(x, 2, ceil_mode=True)
    return halved
