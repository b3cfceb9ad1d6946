"""A head for each modality, which sees that modality alone.

Trained beside the fused logits, they keep a modality from being neglected because another is
faster to learn from (Wang et al. 2020, arXiv 1905.12681).

Shapes: B batch, L labels, D width.
"""

from typing import cast

from torch import Tensor, nn

from medfusion.models.blocks.attention import FeedForward
from medfusion.models.blocks.learned import LearnedTokens, label_logits, scaled_embedding


class UnimodalLabels(nn.Module):
    """From what each label's query gathered from one modality, to the label's logit."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.feed_forward = FeedForward(width)
        self.norm = nn.LayerNorm(width)
        self.readout = LearnedTokens(labels, width, scale=width**-0.5)
        self.bias = scaled_embedding(labels, 1, 0.0)

    @property
    def label_bias(self) -> nn.Parameter:
        """The constants added to the logits, [L, 1]."""
        return cast(nn.Parameter, self.bias.weight)

    def forward(self, evidence_BLD: Tensor) -> Tensor:
        """Return the logits [B, L]."""
        updated_BLD = evidence_BLD + self.feed_forward(evidence_BLD)
        return label_logits(self.norm(updated_BLD), self.readout, self.bias)


class UnimodalPooled(nn.Sequential):
    """From the mean [B, D] of one modality's tokens to the logits [B, L]."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, labels))

    @property
    def label_bias(self) -> nn.Parameter:
        """The constants added to the logits, [L]."""
        return cast(nn.Linear, self[-1]).bias
