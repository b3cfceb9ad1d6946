"""The third branch of Mask R-CNN (He et al. 2017, arXiv 1703.06870): which pixels of a proposal.

The truth is what MDF-Net has for radiographs: the drawn box, filled. No file of masks is read.

Shapes: B batch, C channels, P proposals, S bins a side, L labels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.models.blocks.detection_targets import Targets
from medfusion.models.blocks.precision import at_least_float32

BINS = 14  # a side of what is read of the map under a proposal
_LAYERS = 4


class MaskTargets(NamedTuple):
    """What P proposals of each image compare their masks with.

    Attributes
    ----------
    proposals
        [B, P, 4], corners in pixels.
    classes
        int64 [B, P]: the label that each is matched with, from 1.
    truth
        [B, P, 2 S, 2 S]: what share of each pixel of the mask the drawn box covers.
    weights
        [B, P]: 1, or 0 where the proposal is nothing.
    """

    proposals: Tensor
    classes: Tensor
    truth: Tensor
    weights: Tensor


class MaskHead(nn.Module):
    """Four convolutions, a doubling, and a mask for each label.

    As torchvision's ``MaskRCNNHeads`` with ``MaskRCNNPredictor``, with its initial values, in
    layers whose first dimension is the image: the proposals are a dimension of space, in which
    kernels have one place. Its ReLU works in place, this one not.
    """

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1)) for _ in range(_LAYERS)
        )
        self.grow = nn.ConvTranspose3d(width, width, (1, 2, 2), (1, 2, 2))
        self.classes = nn.Conv3d(width, 1 + labels, 1)
        for layer in (*self.convolutions, self.grow, self.classes):
            assert isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, pooled_BPCSS: Tensor) -> Tensor:
        """Return logits [B, P, 1 + L, 2 S, 2 S]; those of "nothing", the first, mean nothing."""
        x = pooled_BPCSS.transpose(1, 2)
        for layer in self.convolutions:
            x = torch.relu(layer(x))
        x = torch.relu(self.grow(x))
        return at_least_float32(self.classes(x)).transpose(1, 2)


@torch.no_grad()
def mask_targets(
    proposals_BR4: Tensor, targets: Targets, boxes_BM4: Tensor, *, most: int
) -> MaskTargets:
    """Return the targets of the first ``most`` positive proposals of each image.

    Torchvision draws at random which positive ones count; where there are no more than ``most``,
    all do in both.

    Parameters
    ----------
    targets
        Of the proposals.
    boxes_BM4
        What was drawn.
    """
    positive_BR = (targets.classes > 0) & (targets.weights > 0)
    order_BR = positive_BR.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    chosen_BP = order_BR[:, :most]
    drawn_BR4 = boxes_BM4.gather(1, targets.drawn[..., None].expand(-1, -1, 4))
    proposals_BP4, drawn_BP4 = (
        each.gather(1, chosen_BP[..., None].expand(-1, -1, 4))
        for each in (proposals_BR4, drawn_BR4.to(proposals_BR4.dtype))
    )
    return MaskTargets(
        proposals_BP4,
        targets.classes.gather(1, chosen_BP),
        _covered(proposals_BP4, drawn_BP4, 2 * BINS),
        positive_BR.gather(1, chosen_BP).to(proposals_BR4.dtype),
    )


def mask_loss(logits_BPCMM: Tensor, targets: MaskTargets, *, counted: int) -> Tensor:
    """Return the mean cross-entropy of the pixels of the right label's masks, [B].

    The denominator is ``counted`` proposals, a constant, however many are positive.
    """
    side = logits_BPCMM.shape[-1]
    index = targets.classes[..., None, None, None].expand(-1, -1, 1, side, side)
    own_BPMM = logits_BPCMM.gather(2, index).squeeze(2)
    each = functional.binary_cross_entropy_with_logits(own_BPMM, targets.truth, reduction="none")
    # What weighs nothing may be infinite in a model that diverges elsewhere.
    of_proposal = each.mean(dim=(-1, -2))
    weighed = torch.where(targets.weights > 0, of_proposal * targets.weights, 0.0)
    return weighed.sum(dim=1) / counted


def _covered(proposals_BP4: Tensor, drawn_BP4: Tensor, side: int) -> Tensor:
    """Return the share of each of ``side`` x ``side`` cells of a proposal that a box covers."""
    steps = torch.arange(side + 1, device=proposals_BP4.device, dtype=proposals_BP4.dtype) / side
    along = []
    for axis in (1, 0):
        near, far = proposals_BP4[..., axis, None], proposals_BP4[..., axis + 2, None]
        length = (far - near).clamp(min=1.0)
        edges = near + length * steps
        start = torch.maximum(edges[..., :-1], drawn_BP4[..., axis, None])
        end = torch.minimum(edges[..., 1:], drawn_BP4[..., axis + 2, None])
        along.append((end - start).clamp(min=0.0) / (length / side))
    down, across = along
    return down[..., :, None] * across[..., None, :]
