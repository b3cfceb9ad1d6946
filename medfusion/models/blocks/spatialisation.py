"""Clinical data as a vector, and as a map that an image's features can be fused with.

After MDF-Net (Hsieh et al. 2023, arXiv 2302.13390): a vector becomes a map by transposed
convolutions, and is fused with the features of the image before regions are proposed. The paper
feeds raw values and the training set's means; here a column has a public range, a learned map of
its own and a missing flag.

Shapes: B batch, K columns, V values of a column (3 + L), D width of the vector, C channels of a
map, H height, W width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.models.blocks.densenet import group_norm
from medfusion.models.blocks.exchange import pool_to
from medfusion.models.blocks.tokens import TabularTokens

Fusion = Literal["sum", "concat", "gated"]


class ClinicalEncoder(nn.Module):
    """From a study's columns to one vector.

    Parameters
    ----------
    columns, column_values
        K and V.
    width
        D.
    """

    def __init__(self, columns: int, column_values: int, width: int) -> None:
        super().__init__()
        self.tokens = TabularTokens(columns, column_values, width)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x_BKV: Tensor) -> Tensor:
        """Return [B, D]; columns that are not selected have no say."""
        memory = self.tokens(x_BKV)
        weight = memory.keep.unsqueeze(-1).to(memory.tokens.dtype)
        # By the root of the number: the mean of many columns would hide each.
        pooled_BD = (memory.tokens * weight).sum(dim=1) / weight.sum(dim=1).sqrt()
        vector_BD: Tensor = self.out(torch.relu(self.hidden(pooled_BD)))
        return vector_BD


class Spatialisation(nn.Module):
    """From a vector to a map, twice the size at each step, from 1 x 1 on.

    Each step adds to what it got, as in a ResNet: so the vector itself is at every place from the
    start, and is not lost in the norms of many layers.

    Parameters
    ----------
    width
        D, also of the map.
    size
        Height and width of the map.
    channels
        Of a last convolution, without norm and ReLU, that makes the map look like an image;
        None: there is none.
    """

    def __init__(self, width: int, size: tuple[int, int], channels: int | None = None) -> None:
        super().__init__()
        self._size = size
        steps = max(1, (max(size) - 1).bit_length())
        self.grow = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, 2) for _ in range(steps))
        self.grow_norms = nn.ModuleList(group_norm(width) for _ in range(steps))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(steps))
        self.smooth_norms = nn.ModuleList(group_norm(width) for _ in range(steps))
        self.to_image = None if channels is None else nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, vector_BD: Tensor) -> Tensor:
        """Return [B, D, H, W], or [B, channels, H, W]."""
        x_BDHW = vector_BD[:, :, None, None]
        layers = zip(self.grow, self.grow_norms, self.smooth, self.smooth_norms, strict=True)
        for grow, grow_norm, smooth, smooth_norm in layers:
            grown = torch.relu(grow_norm(grow(x_BDHW)))
            same = functional.interpolate(x_BDHW, scale_factor=2.0, mode="nearest")
            x_BDHW = same + torch.relu(smooth_norm(smooth(grown)))
        if self.to_image is not None:
            x_BDHW = self.to_image(x_BDHW)
        return functional.interpolate(x_BDHW, size=self._size, mode="nearest")


class MapFusion(nn.Module):
    """Fuses a map of the image with one of the clinical data, both [B, C, H, W].

    ``sum`` adds them (MDF-Net); ``concat`` lets a 1 x 1 convolution mix their channels; ``gated``
    adds as much of the clinical map as a gate, which sees both, lets through.
    """

    def __init__(self, width: int, kind: Fusion) -> None:
        super().__init__()
        self._kind = kind
        self.mix = None if kind == "sum" else nn.Conv2d(2 * width, width, 1)

    def forward(self, maps: Sequence[Tensor], clinical_BCHW: Tensor) -> list[Tensor]:
        """Return a fused map for each level; the clinical one is pooled to its size."""
        return [self._fused(x, _resized(clinical_BCHW, x)) for x in maps]

    def _fused(self, x_BCHW: Tensor, clinical_BCHW: Tensor) -> Tensor:
        if self.mix is None:
            return x_BCHW + clinical_BCHW
        mixed: Tensor = self.mix(torch.cat([x_BCHW, clinical_BCHW], dim=1))
        return mixed if self._kind == "concat" else x_BCHW + mixed.sigmoid() * clinical_BCHW


class PyramidFusion(nn.Module):
    """Fuses clinical data, as a map, with the levels of a feature pyramid.

    Parameters
    ----------
    columns, column_values
        K and V.
    width
        D, also of the levels.
    size
        Height and width of the finest level.
    kind
        As in `MapFusion`.
    """

    def __init__(
        self, columns: int, column_values: int, width: int, size: tuple[int, int], kind: Fusion
    ) -> None:
        super().__init__()
        self.tabular = ClinicalEncoder(columns, column_values, width)
        self.spatial = Spatialisation(width, size)
        self.fusion = MapFusion(width, kind)

    def forward(self, levels: Sequence[Tensor], x_BKV: Tensor) -> list[Tensor]:
        """Return the fused levels, each [B, D, H, W]."""
        fused: list[Tensor] = self.fusion(levels, self.spatial(self.tabular(x_BKV)))
        return fused


def _resized(clinical_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    height, width = like_BCHW.shape[-2:]
    return pool_to(clinical_BCHW, (height, width)).to(like_BCHW.dtype)
