"""Exchange between the two image streams, both ways, at one stage.

The coupling follows the idea of Conformer (Peng et al. 2021, arXiv 2105.03889): the map is
pooled to the token grid, projected and added to the tokens; the tokens are projected,
upsampled to the map and added to it. That last projection starts small: what untrained tokens say
is blocky noise as large as the map, which kept the convolutions from learning. At zero (as residual
branches start in Zhang et al. 2019, arXiv 1901.09321) some findings were learned later.

Shapes: B batch, C channels of the map, H height, W width, N tokens (a grid), D token width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.models.blocks.precision import at_least_float32

_START = 0.1  # of the usual initial weights


class MapToTokens(nn.Module):
    """What the convolutions see, for the tokens."""

    def __init__(self, channels: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self._grid = grid
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, N, D], to be added to the tokens."""
        pooled_BNC = pool_to(x_BCHW, self._grid).flatten(2).transpose(1, 2)
        tokens_BND: Tensor = self.project(self.norm(at_least_float32(pooled_BNC)))
        return tokens_BND


class TokensToMap(nn.Module):
    """What the tokens see, for the convolutions."""

    def __init__(self, channels: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self._grid = grid
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, channels)
        with torch.no_grad():
            self.project.weight.mul_(_START)
            self.project.bias.zero_()

    def forward(self, tokens_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """Return [B, C, H, W] of height and width ``size``, to be added to the map."""
        grid = self.project(self.norm(tokens_BND)).transpose(1, 2).unflatten(2, self._grid)
        return functional.interpolate(grid, size=size, mode="nearest")


def pool_to(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a map to height and width ``size``; a map of that size passes unchanged."""
    if tuple(x_BCHW.shape[-2:]) == size:
        return x_BCHW
    return functional.adaptive_avg_pool2d(x_BCHW, size)
