"""Channels of a map that tabular data scale and shift.

All start as the identity, so that the image-only network is where training begins.

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


class Modulation(nn.Module):
    """``(1 + a) F + b``, (a, b) from the tabular data and, with ``sees_image``, from GAP(F) too.

    Without it FiLM [1]_, with it DAFT [2]_; both published forms lack the "1 +", without which
    the network would begin with its last stage's map wiped out.
    """

    def __init__(self, spec: InputSpec, channels: int, *, sees_image: bool) -> None:
        super().__init__()
        hidden = max(4, (4 * channels + spec.columns) // 7)
        self.columns = Columns(spec, hidden)
        self.image = nn.Linear(channels, hidden, bias=False) if sees_image else None
        self.out = nn.Linear(hidden, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

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
        self.columns = Columns(spec, first)
        sizes = zip((first, *channels[:-1]), (first, *others), strict=True)
        self.steps = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        for step in self.steps:
            assert isinstance(step, nn.Linear)
            nn.init.zeros_(step.bias)

    def forward(self, tabular_BKV: Tensor) -> list[Tensor]:
        """Return [B, C] for each stage."""
        found, a = [], torch.relu(self.columns(tabular_BKV))
        for step in self.steps:
            a = step(a)
            found.append(1.0 + a)
        return found
