"""Channels of a map that tabular data scale and shift.

All start as the identity, or near it, so that the image-only network is where training begins.
None has biases, as published: what holds for every patient is the encoder's to learn.

Shapes: B batch, C channels, [...] axes of space, K columns, V values of a column.

References
----------
.. [1] Perez et al., "FiLM: visual reasoning with a general conditioning layer", AAAI 2018.
.. [2] Wolf et al., "DAFT: a universal module to interweave tabular data and 3D images in CNNs",
   NeuroImage 2022.
.. [3] Duanmu et al., "Prediction of pathological complete response to neoadjuvant chemotherapy in
   breast cancer using deep learning with integrative imaging, molecular and demographic data",
   MICCAI 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfusion.models.blocks.generated import Columns
from medfusion.models.spec import InputSpec

_SQUEEZE, _LEAST = 7, 4  # inputs to a hidden unit, and the fewest units


class Modulation(nn.Module):
    """``(1 + a) F + b``, with ``(a, b) = W2 ReLU(W1 z)``.

    Of FiLM [1]_ z is what is read of the columns, x; of DAFT [2]_ (``sees_image``) GAP(F) and x.
    The bottleneck is a seventh of DAFT's z in both, so that they differ by the image alone. Not as
    published:

    - The "1 +", without which the network would begin with its last stage's map wiped out.
    - The norm before F has a scale and a shift of its own, which DAFT's has not: every fusion has
      the encoder of the image-only network to begin with. As they begin, 1 and 0, F is DAFT's,
      but that GroupNorm takes from GAP(F) the mean of each group of channels.
    - F is the map after the first norm of the last residual block, before the ReLU. In a
      pre-activation block that norm is at its entry, and the shortcut reads the modulated map too.
      A VGG has F after its last norm, a DenseNet at its last stage's entry, without a norm.
    """

    def __init__(self, spec: InputSpec, channels: int, *, sees_image: bool) -> None:
        super().__init__()
        read = spec.columns * (spec.column_values - 1)
        hidden = max(_LEAST, (channels + read) // _SQUEEZE)
        self.columns = Columns(spec, hidden, bias=False)
        self.image = nn.Linear(channels, hidden, bias=False) if sees_image else None
        self.out = nn.Linear(hidden, 2 * channels, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, tabular_BKV: Tensor) -> Tensor:
        """Return the modulated map [B, C, ...]."""
        hidden = self.columns(tabular_BKV)
        if self.image is not None:
            hidden = hidden + self.image(x.flatten(2).mean(dim=2))
        by_channel = self.out(torch.relu(hidden))
        a, b = by_channel.reshape(*by_channel.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        modulated: Tensor = (1.0 + a) * x + b
        return modulated


class Gates(nn.Module):
    """Factors of the channels of each stage's input, one set led to the next ("interactive" [3]_).

    The published factors are the a_k themselves; 1 + a_k begins near the image-only network.
    """

    def __init__(self, spec: InputSpec, channels: Sequence[int]) -> None:
        super().__init__()
        first, *others = channels
        self.columns = Columns(spec, first, bias=False)
        sizes = zip((first, *channels[:-1]), (first, *others), strict=True)
        self.steps = nn.ModuleList(nn.Linear(before, after, bias=False) for before, after in sizes)

    def forward(self, tabular_BKV: Tensor) -> list[Tensor]:
        """Return [B, C] for each stage."""
        found, a = [], torch.relu(self.columns(tabular_BKV))
        for step in self.steps:
            a = step(a)
            found.append(1.0 + a)
        return found
