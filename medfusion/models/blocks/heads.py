"""From the memories of the modalities to one logit per label.

Shapes: B batch, M tokens of a memory, L labels, D width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medfusion.models.blocks.attention import Attention, FeedForward
from medfusion.models.blocks.learned import LearnedTokens, label_logits, scaled_embedding
from medfusion.models.blocks.tokens import Memory
from medfusion.models.contract import PRESENT, UNKNOWN


class LabelLayer(nn.Module):
    """Label queries gather evidence from each modality, then from one another.

    Each modality has a softmax of its own: in a common one, a few dozen tabular tokens would
    drown among the tokens of image and text. Labels attend to one another after they have seen
    the evidence, since before it they are the same for every patient.

    What they gather starts at zero: no modality has a say before training has found one for it.
    Random evidence of a few hundred patients was learned by heart, and cost more than it told.
    """

    def __init__(
        self, width: int, heads: int, modalities: Sequence[str], *, label_attention: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gather = nn.ModuleDict({name: _silent(width, heads) for name in modalities})
        self.label_norm = nn.LayerNorm(width) if label_attention else None
        self.among_labels = Attention(width, heads) if label_attention else None
        self.feed_forward = FeedForward(width)

    def forward(
        self, labels_BLD: Tensor, memories: Sequence[Memory]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the labels [B, L, D], and the evidence [B, L, D] gathered from each modality."""
        query = self.norm(labels_BLD)
        evidence = [
            attention(query, memory.tokens, memory.keep, memory.gate, memory.log_share)
            for attention, memory in zip(self.gather.values(), memories, strict=True)
        ]
        for each in evidence:
            labels_BLD = labels_BLD + each
        if self.among_labels is not None and self.label_norm is not None:
            normed = self.label_norm(labels_BLD)
            labels_BLD = labels_BLD + self.among_labels(normed, normed)
        updated_BLD: Tensor = labels_BLD + self.feed_forward(labels_BLD)
        return updated_BLD, evidence


def _silent(width: int, heads: int) -> Attention:
    """Return attention whose output is zero until trained."""
    attention = Attention(width, heads)
    nn.init.zeros_(attention.out.weight)
    nn.init.zeros_(attention.out.bias)
    return attention


class LabelStates(nn.Module):
    """What is told of a label, added to its query; an unknown label adds nothing.

    The states of C-Tran (Lanchantin et al. 2021, arXiv 2011.14027). They start at zero, so the
    model starts as the same one without them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = scaled_embedding(2, width, 0.0)

    def forward(self, labels_BLD: Tensor, states_BL: Tensor | None) -> Tensor:
        """Return the queries [B, L, D]; without states all labels are unknown."""
        if states_BL is None:
            states_BL = torch.full(labels_BLD.shape[:2], UNKNOWN, device=labels_BLD.device)
        told_BL1 = (states_BL != UNKNOWN).unsqueeze(-1)
        added_BLD: Tensor = self.table((states_BL == PRESENT).long()) * told_BL1
        return labels_BLD + added_BLD


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
        modalities: Sequence[str],
        label_attention: bool,
        label_states: bool,
    ) -> None:
        super().__init__()
        self.queries = LearnedTokens(labels, width, scale=1.0)
        self.layers = nn.ModuleList(
            LabelLayer(width, heads, modalities, label_attention=label_attention)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.readout = LearnedTokens(labels, width, scale=width**-0.5)
        self.bias = scaled_embedding(labels, 1, 0.0)
        # What is optional comes last, so that it leaves the initial values above as they are.
        self.states = LabelStates(width) if label_states else None

    @property
    def label_bias(self) -> nn.Parameter:
        """The constants added to the logits, [L, 1]."""
        return cast(nn.Parameter, self.bias.weight)

    def forward(
        self, memories: Sequence[Memory], states_BL: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [B, L], and for each modality [B, L, D] that it alone has formed.

        The latter are the queries and what they gathered in the first layer, before they met
        evidence of another modality. ``states_BL`` is ``label_states`` of the inputs.
        """
        labels_BLD = self.queries(memories[0].tokens)
        if self.states is not None:
            labels_BLD = self.states(labels_BLD, states_BL)
        first_BLD = labels_BLD
        alone: list[Tensor] = []
        for layer in self.layers:
            labels_BLD, evidence = layer(labels_BLD, memories)
            alone = alone or [first_BLD + evidence_BLD for evidence_BLD in evidence]
        return label_logits(self.norm(labels_BLD), self.readout, self.bias), alone


class PooledHead(nn.Module):
    """The mean of each modality's visible tokens, concatenated, through a two-layer perceptron.

    A token counts in the mean as its ``log_share`` says.
    """

    def __init__(self, width: int, *, labels: int, memories: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(memories * width, 2 * width)
        self.out = nn.Linear(2 * width, labels)

    @property
    def label_bias(self) -> nn.Parameter:
        """The constants added to the logits, [L]."""
        return self.out.bias

    def forward(self, memories: Sequence[Memory]) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [B, L], and the mean [B, D] of each modality."""
        means = [_mean(memory) for memory in memories]
        pooled = torch.cat(means, dim=-1)
        logits_BL: Tensor = self.out(torch.relu(self.hidden(pooled)))
        return logits_BL, means


def _mean(memory: Memory) -> Tensor:
    """Weighted mean [B, D] over the visible tokens, of which the state token is one."""
    weight_BM1 = memory.keep.unsqueeze(-1).to(memory.tokens.dtype)
    if memory.log_share is not None:
        weight_BM1 = weight_BM1 * memory.log_share.exp().unsqueeze(-1)
    tokens_BMD = memory.tokens if memory.gate is None else memory.tokens * memory.gate
    return (tokens_BMD * weight_BM1).sum(dim=1) / weight_BM1.sum(dim=1)
