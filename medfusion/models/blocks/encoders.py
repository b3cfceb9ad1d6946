"""Convolutional encoders for images and volumes: a pre-activation ResNet, and a VGG.

After the networks of HyperFusion (see `medfusion.models.blocks.generated`): GroupNorm in place of
BatchNorm, which mixes patients, and no dropout, whose draws would come from a stream that is
nobody's. What a fusion does inside the encoder reaches it as `Inside`.

Shapes: B batch, C channels, [...] two or three axes of space, l width of the embedding, K columns,
V values of a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from medfusion.errors import ConfigError, did_you_mean
from medfusion.models.blocks.densenet import group_norm
from medfusion.models.blocks.generated import Generated
from medfusion.models.blocks.modulation import Gates, Modulation


@dataclass(frozen=True)
class Inside:
    """What happens to the maps of one batch on their way through the encoder.

    Attributes
    ----------
    tabular
        [B, K, V]; None where the encoder sees none.
    embedding
        [B, l] for generated layers; None without any.
    gates
        Multiply the channels of each stage's input.
    modulation
        Scales and shifts a map of the last stage.
    """

    tabular: Tensor | None = None
    embedding: Tensor | None = None
    gates: Gates | None = None
    modulation: Modulation | None = None

    def modulate(self, x: Tensor) -> Tensor:
        """Return the modulated map, or ``x`` itself."""
        if self.modulation is None:
            return x
        assert self.tabular is not None
        modulated: Tensor = self.modulation(x, self.tabular)
        return modulated


def run(layer: nn.Module, x: Tensor, embedding: Tensor | None) -> Tensor:
    """Return a layer's output, whether it is generated or not."""
    found: Tensor = layer(x, embedding) if isinstance(layer, Generated) else layer(x)
    return found


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

    def forward(self, x: Tensor, inside: Inside) -> Tensor:
        """Return [B, C, ...] of ``channels`` rectified channels."""
        if self.stem is not None:
            x = halve(self.stem(x))
        gates = inside.gates(inside.tabular) if inside.gates is not None else None
        last = len(self.stages) - 1
        for number, stage in enumerate(self.stages):
            if gates is not None:
                x = x * _along(gates[number], x)
            apart = Inside(inside.tabular, inside.embedding)
            x = stage(x, inside if number == last else apart)
        return torch.relu(x)


def generate(layers: nn.Module, names: Sequence[str], *, embedding: int, rank: int | None) -> None:
    """Replace the named convolutions and linear layers below ``layers`` by generated ones.

    Raises
    ------
    ConfigError
        If there is no such layer.
    """
    known = {
        name: layer
        for name, layer in layers.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd)
    }
    for name in names:
        if name not in known:
            raise ConfigError(
                f"model.generated: no layer {name!r}{did_you_mean(name, known)}; expected some of "
                f"{', '.join(known)}"
            )
        layers.set_submodule(name, Generated(known[name], embedding, rank))


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


def _along(factors_BC: Tensor, x: Tensor) -> Tensor:
    return factors_BC.reshape(*factors_BC.shape, *[1] * (x.ndim - 2))
