"""Two streams over an image, convolutions and tokens, that exchange at every stage.

Shapes: B batch, C channels, H height, W width, N tokens, D token width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medfusion.models.blocks.attention import SelfAttentionBlock
from medfusion.models.blocks.densenet import (
    Convolution,
    DenseStage,
    Norm,
    Stem,
    Transition,
    group_norm,
    stem_stride,
)
from medfusion.models.blocks.densenet121 import FixedNorm, NormReLU, WideStem
from medfusion.models.blocks.exchange import MapToTokens, TokensToMap, pool_to
from medfusion.models.blocks.fpn import FeaturePyramid
from medfusion.models.blocks.inside import Inside, gated
from medfusion.models.blocks.learned import Places
from medfusion.models.blocks.standardized import StandardizedConv2d

_PATCH = 4  # pixels of the stem's map per side of a patch
_LARGEST_GRID = 8
_ALONE = Inside()


@dataclass(frozen=True, kw_only=True)
class StreamSizes:
    """Widths and depths of the image streams.

    With ``as_torchvision``, stem and norms stand where torchvision's DenseNet has them: the stem
    divides the resolution by four, and the pyramid reads normed and rectified maps. The weights
    are then used as they are.
    """

    stem: int
    growth: int
    bottleneck: int
    layers: tuple[int, int, int, int]
    width: int
    heads: int
    as_torchvision: bool = False


class PatchTokens(nn.Module):
    """Cuts the stem's map into patches, each a token."""

    def __init__(self, channels: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self._size = (grid[0] * _PATCH, grid[1] * _PATCH)
        self.project = nn.Conv2d(channels, width, _PATCH, _PATCH)
        self.places = Places([grid], width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, N, D]."""
        patches_BDHW = self.project(pool_to(x_BCHW, self._size))
        tokens_BND: Tensor = patches_BDHW.flatten(2).transpose(1, 2) + self.places(x_BCHW)
        return tokens_BND


class TokenStream(nn.Module):
    """The transformer stream: one block per stage, coupled to the maps unless ``exchange`` is off.

    Parameters
    ----------
    channels
        Width of the stem's map, then of each stage's.
    width, heads, grid
        D, heads of the attention, and the grid of the N tokens.
    exchange
        Couple the streams.
    """

    def __init__(
        self, channels: list[int], width: int, heads: int, grid: tuple[int, int], *, exchange: bool
    ) -> None:
        super().__init__()
        stem, *stages = channels
        self.patches = PatchTokens(stem, width, grid)
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, heads) for _ in stages)
        coupled = stages if exchange else []
        self.to_tokens = nn.ModuleList(MapToTokens(c, width, grid) for c in coupled)
        self.to_map = nn.ModuleList(TokensToMap(c, width, grid) for c in coupled)

    def stage(self, number: int, x_BCHW: Tensor, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Take map and tokens through one stage of exchange and self-attention."""
        if self.to_tokens:
            tokens_BND = tokens_BND + self.to_tokens[number](x_BCHW)
        tokens_BND = self.blocks[number](tokens_BND)
        if self.to_map:
            height, breadth = x_BCHW.shape[-2:]
            x_BCHW = x_BCHW + self.to_map[number](tokens_BND, (height, breadth))
        return x_BCHW, tokens_BND


class ImageStreams(nn.Module):
    """Image to tokens: DenseNet and transformer stages, a feature pyramid, one list of tokens.

    Parameters
    ----------
    image_channels, image_size
        Channels, and height and width in pixels, of the images.
    sizes
        Widths and depths.
    attention_stream, exchange, fpn
        The parts that can be switched off; see `MedFusionNetOptions`.
    norm
        ``group``, or ``batch``: fixed statistics (`FixedNorm`) in the convolutional stream.
    frozen_stages
        Stem and leading stages of the convolutional stream that are not trained. Until
        something trained joins in, autograd keeps nothing of them.

    Attributes
    ----------
    grids
        Height and width of the grid that each part of the tokens is laid out in.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: tuple[int, int],
        sizes: StreamSizes,
        *,
        attention_stream: bool,
        exchange: bool,
        fpn: bool,
        norm: Literal["batch", "group"] = "group",
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        make_norm = FixedNorm if norm == "batch" else group_norm
        self.stem: nn.Module
        if sizes.as_torchvision:
            stride = WideStem.stride
            self.stem = WideStem(image_channels, sizes.stem, make_norm)
        else:
            stride = stem_stride(image_size)
            self.stem = Stem(image_channels, sizes.stem, stride)
        convolution = nn.Conv2d if sizes.as_torchvision else StandardizedConv2d
        channels = self._add_stages(sizes, make_norm, convolution)
        self.final = NormReLU(channels[-1], make_norm) if sizes.as_torchvision else None
        maps = _map_sizes(image_size, stride)
        grid = _patch_grid(maps[0])
        self.tokens = (
            TokenStream(channels, sizes.width, sizes.heads, grid, exchange=exchange)
            if attention_stream
            else None
        )
        self._taps = (1, 2, 3) if fpn else (3,)
        self.pyramid = FeaturePyramid([channels[tap + 1] for tap in self._taps], sizes.width)
        self.finest = maps[self._taps[0]]
        self._grids = [_capped(maps[tap]) for tap in self._taps]
        self.grids = self._grids + ([grid] if attention_stream else [])
        self.places = Places(self.grids, sizes.width)
        # The fine level's many tokens would leave the others' few next to nothing to say at first.
        counts = torch.tensor([height * breadth for height, breadth in self.grids])
        self.log_share: Tensor
        self.register_buffer("log_share", -counts.repeat_interleave(counts).log(), persistent=False)
        self.norm = nn.LayerNorm(sizes.width)
        self._freeze(frozen_stages)

    def _add_stages(self, sizes: StreamSizes, norm: Norm, convolution: Convolution) -> list[int]:
        """Make the convolutional stages; return the width of the stem, then of each stage."""
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        self.input_channels: list[int] = []  # of each stage
        entering, channels = sizes.stem, [sizes.stem]
        for layers in sizes.layers:
            if len(channels) > 1:
                transition = Transition(channels[-1], norm, convolution)
                self.transitions.append(transition)
                entering = transition.channels
            self.input_channels.append(entering)
            stage = DenseStage(
                entering,
                layers=layers,
                growth=sizes.growth,
                bottleneck=sizes.bottleneck,
                norm=norm,
                convolution=convolution,
            )
            self.stages.append(stage)
            channels.append(stage.channels)
        return channels

    def _freeze(self, stages: int) -> None:
        """Stop the training of the stem and the leading stages, with what leads to each."""
        if stages:
            self.stem.requires_grad_(False)
        for part in (*self.stages[:stages], *self.transitions[: max(stages - 1, 0)]):
            part.requires_grad_(False)
        if self.final is not None and stages == len(self.stages):
            self.final.requires_grad_(False)

    def forward(self, image_BCHW: Tensor, inside: Inside = _ALONE) -> Tensor:
        """Return tokens [B, N, D]: the pyramid's levels, finest first, then the token stream."""
        x_BCHW = self.stem(image_BCHW)
        factors = inside.factors()
        tokens_BND = None if self.tokens is None else self.tokens.patches(x_BCHW)
        taps = []
        for number, stage in enumerate(self.stages):
            x_BCHW = gated(x_BCHW, factors, number)
            if number == len(self.transitions):
                x_BCHW = inside.modulate(x_BCHW)
            x_BCHW = stage(x_BCHW)
            if self.tokens is not None and tokens_BND is not None:
                x_BCHW, tokens_BND = self.tokens.stage(number, x_BCHW, tokens_BND)
            tap_BCHW, x_BCHW = self._leave(number, x_BCHW, inside.embedding)
            if number in self._taps:
                taps.append(tap_BCHW)
        levels = zip(inside.fuse(self.pyramid(taps)), self._grids, strict=True)
        found = [pool_to(level, grid).flatten(2).transpose(1, 2) for level, grid in levels]
        if tokens_BND is not None:
            found.append(tokens_BND)
        all_BND = torch.cat(found, dim=1)
        normed_BND: Tensor = self.norm(all_BND + self.places(image_BCHW))
        return normed_BND

    def _leave(
        self, number: int, x_BCHW: Tensor, embedding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the pyramid reads of a stage's map, and what enters the next stage."""
        if number == len(self.transitions):
            return (x_BCHW if self.final is None else self.final(x_BCHW)), x_BCHW
        transition = self.transitions[number]
        assert isinstance(transition, Transition)
        active_BCHW = transition.activate(x_BCHW)
        return (x_BCHW if self.final is None else active_BCHW), transition.halve(
            active_BCHW, embedding
        )


def _map_sizes(image_size: tuple[int, int], stride: int) -> list[tuple[int, int]]:
    """Height and width of the four stages' maps (halving rounds up)."""
    height, breadth = image_size
    strides = [stride * 2**stage for stage in range(4)]
    return [(-(-height // s), -(-breadth // s)) for s in strides]


def _patch_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Grid of patch tokens for a stem's map of ``size``."""
    return _capped((max(size[0] // _PATCH, 2), max(size[1] // _PATCH, 2)))


def _capped(size: tuple[int, int]) -> tuple[int, int]:
    return min(size[0], _LARGEST_GRID), min(size[1], _LARGEST_GRID)
