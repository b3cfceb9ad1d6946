"""What the parts of a volume look like, without anything learned.

Mean and standard deviation of the voxels in each cell of a fine grid. Where volumes are aligned, as
brains brought to a common space, linear models of such values are hard to beat with few patients
(Schulz et al., "Different scaling for linear models and deep learning in UKBiobank brain images
versus machine-learning datasets", Nature Communications 2020).

Shapes: B batch, C channels, X, Y and Z sides, F features.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.models.blocks.precision import at_least_float32
from medfusion.models.blocks.wavelets import standardised

_MOST_CELLS = 2**14
_SMALLEST_VARIANCE = 1e-8  # of voxels in [-1, 1]; a level cell has a gradient too


class VolumeCells(nn.Module):
    """Fixed features of a volume, [B, F] in float32 or wider; see `count`.

    A cell is two voxels along each axis, or four, eight, ... where that would be more than 16,384
    cells. Means, and standard deviations, are each brought to mean 0 and variance 1 in each
    sample: brightness and contrast of scanners say little.

    Parameters
    ----------
    channels
        C.
    image_size
        X, Y and Z.
    """

    def __init__(self, channels: int, image_size: tuple[int, int, int]) -> None:
        super().__init__()
        self._size, self._channels, self._cell = image_size, channels, 2
        while self._cells() > _MOST_CELLS:
            self._cell *= 2

    @property
    def count(self) -> int:
        """F."""
        return 2 * self._channels * self._cells()

    def _cells(self) -> int:
        return prod(-(-side // self._cell) for side in self._size)

    def forward(self, volume_BCXYZ: Tensor) -> Tensor:
        """Return the features of volumes [B, C, X, Y, Z], or of ones that were halved."""
        with torch.autocast(volume_BCXYZ.device.type, enabled=False):
            volume = at_least_float32(volume_BCXYZ)
            if volume.shape[2:] != self._size:
                volume = functional.interpolate(volume, size=self._size, mode="nearest")
            means = self._averages(volume)
            variances = (self._averages(volume.square()) - means.square()).clamp_min(0.0)
            deviations = (variances + _SMALLEST_VARIANCE).sqrt()
            return torch.cat([standardised(means), standardised(deviations)], dim=1)

    def in_advance(self, volume_BCXYZ: Tensor) -> Tensor:
        """Return the features of volumes on the CPU, on the CPU."""
        features: Tensor = self(volume_BCXYZ)
        return features

    def _averages(self, volume_BCXYZ: Tensor) -> Tensor:
        """Average over cells; one at the border counts the voxels that it has."""
        return functional.avg_pool3d(
            volume_BCXYZ, self._cell, ceil_mode=True, count_include_pad=False
        )
