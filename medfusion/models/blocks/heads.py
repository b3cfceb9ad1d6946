"""From the memories of the modalities to one logit per label.

Shapes: B batch, M tokens of a memory, L labels, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfusion.models.blocks.attention import Attention, FeedForward
from medfusion.models.blocks.learned import LearnedTokens, scaled_embedding
from medfusion.models.blocks.tokens import Memory


class LabelLayer(nn.Module):
    """Label queries gather evidence from each modality, then from one another.

    Each modality has a softmax of its own: in a common one, a few dozen tabular tokens would
    drown among the tokens of image and text. Labels attend to one another after they have seen
    the evidence, since before it they are the same for every patient.
    """

    def __init__(self, width: int, heads: int, memories: int, *, label_attention: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gather = nn.ModuleList(Attention(width, heads) for _ in range(memories))
        self.label_norm = nn.LayerNorm(width) if label_attention else None
        self.among_labels = Attention(width, heads) if label_attention else None
        self.feed_forward = FeedForward(width)

    def forward(self, labels_BLD: Tensor, memories: Sequence[Memory]) -> Tensor:
        """Return [B, L, D]."""
        query = self.norm(labels_BLD)
        for attention, memory in zip(self.gather, memories, strict=True):
            labels_BLD = labels_BLD + attention(query, memory.tokens, memory.keep)
        if self.among_labels is not None and self.label_norm is not None:
            normed = self.label_norm(labels_BLD)
            labels_BLD = labels_BLD + self.among_labels(normed, normed)
        updated_BLD: Tensor = labels_BLD + self.feed_forward(labels_BLD)
        return updated_BLD


class QueryHead(nn.Module):
    """One learned query per label, a few `LabelLayer`, one linear read-out per label.

    The idea is that of Query2Label (Liu et al. 2021, arXiv 2107.10834) and C-Tran (Lanchantin
    et al. 2021, arXiv 2011.14027).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        labels: int,
        layers: int,
        memories: int,
        label_attention: bool,
    ) -> None:
        super().__init__()
        self.queries = LearnedTokens(labels, width, scale=1.0)
        self.layers = nn.ModuleList(
            LabelLayer(width, heads, memories, label_attention=label_attention)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.readout = LearnedTokens(labels, width, scale=width**-0.5)
        self.bias = scaled_embedding(labels, 1, 0.0)

    def forward(self, memories: Sequence[Memory]) -> Tensor:
        """Return the logits [B, L]."""
        labels_BLD = self.queries(memories[0].tokens)
        for layer in self.layers:
            labels_BLD = layer(labels_BLD, memories)
        labels_BLD = self.norm(labels_BLD)
        ids = torch.arange(labels_BLD.shape[1], device=labels_BLD.device)
        bias_BL = self.bias(ids.expand(labels_BLD.shape[0], -1)).squeeze(-1)
        logits_BL: Tensor = (labels_BLD * self.readout(labels_BLD)).sum(dim=-1) + bias_BL
        return logits_BL


class PooledHead(nn.Module):
    """The mean of each modality's visible tokens, concatenated, through a two-layer perceptron."""

    def __init__(self, width: int, *, labels: int, memories: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(memories * width, 2 * width)
        self.out = nn.Linear(2 * width, labels)

    def forward(self, memories: Sequence[Memory]) -> Tensor:
        """Return the logits [B, L]."""
        pooled = torch.cat([_mean(memory) for memory in memories], dim=-1)
        logits_BL: Tensor = self.out(torch.relu(self.hidden(pooled)))
        return logits_BL


def _mean(memory: Memory) -> Tensor:
    """Mean [B, D] over the visible tokens, of which the state token is one."""
    keep_BM1 = memory.keep.unsqueeze(-1).to(memory.tokens.dtype)
    return (memory.tokens * keep_BM1).sum(dim=1) / keep_BM1.sum(dim=1)
