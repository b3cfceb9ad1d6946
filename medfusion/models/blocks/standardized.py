"""Convolutions whose weights are standardised: each output channel has mean 0 and norm 1.

GroupNorm leaves the channels of a group what they are to one another, and from random weights
some never recover; BatchNorm, which would scale each by itself, mixes the samples of a batch.
Standardised weights do it from the other side (Qiao et al. 2019, arXiv 1903.10520; with GroupNorm
under differential privacy: De et al. 2022, arXiv 2204.13650).
"""

import torch
from torch import Tensor, nn

_SMALLEST = 1e-4  # added to the squared norm


class StandardizedConv2d(nn.Conv2d):
    """A convolution [B, C, H, W] -> [B, C', H', W'] with `standardized` weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``input`` with the standardised weights."""
        convolved: Tensor = self._conv_forward(input, standardized(self.weight), self.bias)
        return convolved


def standardized(weight: Tensor) -> Tensor:
    """Return weights [C', C, h, w] of which each output channel has mean 0 and norm 1."""
    return standardized_with_scale(weight.flatten(1))[0].reshape(weight.shape)


def standardized_with_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return standardised weights [C', P], and the factor [C', 1] on the centred ones."""
    centred = weight - weight.mean(dim=1, keepdim=True)
    scale = torch.rsqrt(centred.square().sum(dim=1, keepdim=True) + _SMALLEST)
    return centred * scale, scale
