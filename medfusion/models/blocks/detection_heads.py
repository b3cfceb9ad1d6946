"""The heads of a two-stage detector, in layers whose first dimension is the image.

Shapes: B batch, C channels, H height, W width, A anchors, R proposals, D width, L labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfusion.models.blocks.precision import at_least_float32


class RegionHead(nn.Module):
    """Says of every anchor whether something is there, and how it is to be moved.

    As torchvision's ``RPNHead``, with its initial values; its ReLU works in place, this one not.

    Parameters
    ----------
    width
        C.
    anchors
        How many there are at each place of a map.
    """

    def __init__(self, width: int, anchors: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.objectness = nn.Conv2d(width, anchors, 1)
        self.deltas = nn.Conv2d(width, 4 * anchors, 1)
        for layer in (self.hidden, self.objectness, self.deltas):
            _start_small(layer, 0.01)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits [B, A] and deltas [B, A, 4] of all maps, in the order of the anchors."""
        hidden = [torch.relu(self.hidden(x)) for x in maps]
        objectness = [self.objectness(x).movedim(1, -1).flatten(1) for x in hidden]
        deltas = [self.deltas(x).movedim(1, -1).flatten(1).unflatten(1, (-1, 4)) for x in hidden]
        return (
            at_least_float32(torch.cat(objectness, dim=1)),
            at_least_float32(torch.cat(deltas, dim=1)),
        )


class BoxHead(nn.Module):
    """Says of every proposal what it is, and how it is to be moved.

    As torchvision's ``TwoMLPHead`` with ``FastRCNNPredictor``. A vector of the study, if it has
    one, stands beside what the map holds under each proposal: the 1-D fusion of MDF-Net.

    Parameters
    ----------
    features
        Numbers that the map gives for each proposal.
    clinical
        Width of the study's vector, 0 without.
    hidden
        Width of the two hidden layers.
    labels
        L.
    """

    def __init__(self, features: int, clinical: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.first = nn.Linear(features + clinical, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.classes = nn.Linear(hidden, 1 + labels)
        self.deltas = nn.Linear(hidden, 4 * (1 + labels))

    def forward(self, pooled_BRF: Tensor, clinical_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return logits [B, R, 1 + L], "nothing" first, and deltas [B, R, 1 + L, 4]."""
        x_BRF = pooled_BRF
        if clinical_BD is not None:
            same = clinical_BD[:, None].expand(-1, x_BRF.shape[1], -1)
            x_BRF = torch.cat([x_BRF, same.to(x_BRF.dtype)], dim=-1)
        x_BRD = torch.relu(self.first(x_BRF))
        x_BRD = torch.relu(self.second(x_BRD))
        logits, deltas = at_least_float32(self.classes(x_BRD)), at_least_float32(self.deltas(x_BRD))
        return logits, deltas.reshape(*deltas.shape[:-1], -1, 4)


def _start_small(layer: nn.Conv2d, scale: float) -> None:
    nn.init.normal_(layer.weight, std=scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
