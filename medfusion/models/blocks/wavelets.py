"""What an image's textures and edges are, without anything learned.

Moduli of Morlet wavelets, averaged over the cells of a coarse grid: the first order of a scattering
transform [1]_, computed octave by octave on an image that is halved in between. Linear models
of such features need far fewer patients, and far less of a privacy budget, than convolutions
learned from scratch [2]_.

Shapes: B batch, C channels, H height, W width, O orientations, G side of the grid, F features.

References
----------
.. [1] Bruna and Mallat, "Invariant scattering convolution networks", IEEE TPAMI 2013,
   arXiv 1203.1513.
.. [2] Tramèr and Boneh, "Differentially private learning needs better features (or much more
   data)", ICLR 2021, arXiv 2011.11660.
"""

from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional

_ORIENTATIONS = 6
_WAVELENGTH = 3.5  # pixels of the octave's own image: the finest that 7 x 7 pixels hold well
_SIDE = 7
_SMALLEST = 16  # pixels; smaller images have no octave of their own
_GRID = 4
_FLOOR = 1e-5  # of a variance: a blank image has next to no features


class Wavelets(nn.Module):
    """Fixed features of an image, float32 [B, F]; see `count`.

    Those of an octave, and the averages of the image itself, are brought to mean 0 and variance 1
    in each sample: brightness, contrast and the steep spectrum of images say little.

    Parameters
    ----------
    channels
        C.
    image_size
        H and W.
    """

    def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self._channels = channels
        self._octaves = _octaves(image_size)
        self._breadth = image_size[1]
        self._of_octave = channels * _ORIENTATIONS * _GRID**2
        self.bank: Tensor
        self.register_buffer("bank", _bank().repeat(channels, 1, 1, 1), persistent=False)

    @property
    def count(self) -> int:
        """F."""
        return self._channels * _GRID**2 + self._octaves * self._of_octave

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the features of images [B, C, H, W], or of images of half that size.

        Those lack the finest octave, whose features are zero; the others stay what they are.
        """
        with torch.no_grad(), torch.autocast(image_BCHW.device.type, enabled=False):
            x_BCHW = image_BCHW.to(self.bank.dtype)
            found = [standardised(_cells(x_BCHW))]
            halved = x_BCHW.shape[-1] < self._breadth
            if halved:
                found.append(x_BCHW.new_zeros(len(x_BCHW), self._of_octave))
            for octave in range(int(halved), self._octaves):
                if octave > int(halved):
                    x_BCHW = functional.avg_pool2d(x_BCHW, 2)
                found.append(standardised(_cells(self._moduli(x_BCHW))))
            return torch.cat(found, dim=1)

    def in_advance(self, image_BCHW: Tensor) -> Tensor:
        """Return the features of images on the CPU, on the CPU."""
        features: Tensor = self(image_BCHW.to(self.bank.device))
        return features.cpu()

    def _moduli(self, x_BCHW: Tensor) -> Tensor:
        """Return the wavelets' moduli [B, C O, H, W]."""
        margin = _SIDE // 2
        padded = functional.pad(x_BCHW, [margin] * 4, mode="reflect")  # no edge at the border
        waves = functional.conv2d(padded, self.bank, groups=self._channels)
        return torch.hypot(waves[:, ::2], waves[:, 1::2])  # of the even and the odd one


def _cells(maps: Tensor) -> Tensor:
    """Average maps [B, M, H, W] over the cells of the grid, [B, M, G, G]."""
    return functional.adaptive_avg_pool2d(maps, _GRID)


def standardised(maps: Tensor) -> Tensor:
    """Flatten maps [B, ...] and bring each sample to mean 0 and variance 1; level ones to 0."""
    flat = maps.flatten(1)
    return functional.layer_norm(flat, flat.shape[1:], eps=_FLOOR)


def _octaves(image_size: tuple[int, int]) -> int:
    side, count = min(image_size), 1
    while side // 2 >= _SMALLEST:
        side, count = side // 2, count + 1
    return count


def _bank() -> Tensor:
    """Return Morlet wavelets [2 O, 1, 7, 7]: of each orientation the even and the odd one."""
    places = torch.arange(_SIDE, dtype=torch.float64) - _SIDE // 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * (_WAVELENGTH / 2) ** 2))
    waves = []
    for orientation in range(_ORIENTATIONS):
        angle = torch.tensor(pi * orientation / _ORIENTATIONS, dtype=torch.float64)
        along = 2 * pi / _WAVELENGTH * (x * angle.cos() + y * angle.sin())
        brightness = (envelope * along.cos()).sum() / envelope.sum()
        for wave in (envelope * (along.cos() - brightness), envelope * along.sin()):
            waves.append(wave / wave.norm())
    return torch.stack(waves).unsqueeze(1).float()
