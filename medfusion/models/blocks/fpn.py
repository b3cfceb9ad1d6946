"""Feature pyramid (Lin et al. 2017, arXiv 1612.03144).

Shapes: B batch, C channels of a level, D width of the pyramid, H height, W width.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """1x1 laterals, top-down by nearest neighbours, 3x3 smoothing.

    Parameters
    ----------
    channels
        Width of each level, finest first.
    width
        D, the width of every level of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return a map [B, D, H, W] for each level, finest first."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            size = levels[fine].shape[-2:]
            above = functional.interpolate(levels[fine + 1], size=size, mode="nearest")
            levels[fine] = levels[fine] + above
        return [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
