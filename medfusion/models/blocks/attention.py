"""Attention from linear layers and plain products: safe under hooks, vmap and autocast.

A masked key gets exactly zero weight. Every row of a mask must leave at least one key.

Shapes: B batch, Q queries, M keys, D width, H heads, E width of a head.
"""

from math import sqrt

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of queries to keys, with all projections of width D."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        query_BQD: Tensor,
        key_BMD: Tensor,
        keep_BM: Tensor | None = None,
        gate_BM1: Tensor | None = None,
        log_share_M: Tensor | None = None,
    ) -> Tensor:
        """Return [B, Q, D].

        ``keep_BM`` is False at keys that must not be seen; ``gate_BM1`` scales the values;
        ``log_share_M`` is added to the scores.
        """
        weights_BHQM, value_BMD = self._weigh(query_BQD, key_BMD, keep_BM, log_share_M)
        if gate_BM1 is not None:
            value_BMD = value_BMD * gate_BM1
        mixed_BHQE = weights_BHQM @ self._split(value_BMD)
        attended: Tensor = self.out(mixed_BHQE.transpose(1, 2).flatten(2))
        return attended

    def weights(
        self,
        query_BQD: Tensor,
        key_BMD: Tensor,
        keep_BM: Tensor | None = None,
        gate_BM1: Tensor | None = None,
        log_share_M: Tensor | None = None,
    ) -> Tensor:
        """Return how much of each key a query takes in, [B, H, Q, M], as `forward` has it.

        Each head's weights add up to 1; what a gate leaves of a value is multiplied in after that.
        """
        weights_BHQM, _ = self._weigh(query_BQD, key_BMD, keep_BM, log_share_M)
        return weights_BHQM if gate_BM1 is None else weights_BHQM * gate_BM1[:, None, None, :, 0]

    def _weigh(
        self,
        query_BQD: Tensor,
        key_BMD: Tensor,
        keep_BM: Tensor | None,
        log_share_M: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the weights [B, H, Q, M] and the values [B, M, D]."""
        q_BHQE = self._split(self.query(query_BQD))
        key_BMD, value_BMD = self.key_value(key_BMD).chunk(2, dim=-1)
        scores_BHQM = q_BHQE @ self._split(key_BMD).transpose(-1, -2) / sqrt(q_BHQE.shape[-1])
        if log_share_M is not None:
            scores_BHQM = scores_BHQM + log_share_M
        if keep_BM is not None:
            lowest = torch.finfo(scores_BHQM.dtype).min
            scores_BHQM = scores_BHQM.masked_fill(~keep_BM[:, None, None, :], lowest)
        return scores_BHQM.softmax(dim=-1), value_BMD

    def _split(self, x_BMD: Tensor) -> Tensor:
        batch, length, width = x_BMD.shape
        heads_BMHE = x_BMD.reshape(batch, length, self._heads, width // self._heads)
        return heads_BMHE.transpose(1, 2)


class FeedForward(nn.Sequential):
    """Norm, linear to twice the width, GELU, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )


class SelfAttentionBlock(nn.Module):
    """A pre-norm transformer block over [B, M, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Return [B, M, D]."""
        normed = self.norm(x_BMD)
        x_BMD = x_BMD + self.attention(normed, normed)
        mixed_BMD: Tensor = x_BMD + self.feed_forward(x_BMD)
        return mixed_BMD
