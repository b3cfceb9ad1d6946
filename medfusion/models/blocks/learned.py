"""Learned constants as lookups.

A parameter that a module adds to its activations escapes Opacus' hooks. The same values in an
`nn.Embedding`, looked up with ids expanded to the batch, get right per-sample gradients.

Shapes: B batch, N entries, L labels, D width.
"""

import torch
from torch import Tensor, nn


class LearnedTokens(nn.Module):
    """N learned vectors, the same for every sample.

    Parameters
    ----------
    count, width
        N and D.
    scale
        Standard deviation of the initial values.
    """

    def __init__(self, count: int, width: int, *, scale: float) -> None:
        super().__init__()
        self.table = scaled_embedding(count, width, scale)

    def forward(self, like: Tensor) -> Tensor:
        """Return [B, N, D], with batch and device of ``like``."""
        ids = torch.arange(self.table.num_embeddings, device=like.device)
        tokens_BND: Tensor = self.table(ids.expand(like.shape[0], -1))
        return tokens_BND


def scaled_embedding(count: int, width: int, scale: float) -> nn.Embedding:
    """Embedding whose initial values have standard deviation ``scale``."""
    table = nn.Embedding(count, width)
    with torch.no_grad():
        table.weight.mul_(scale)
    return table


def label_logits(labels_BLD: Tensor, readout: LearnedTokens, bias: nn.Embedding) -> Tensor:
    """Return the logits [B, L]: one linear read-out per label, ``readout`` and ``bias``."""
    return with_bias((labels_BLD * readout(labels_BLD)).sum(dim=-1), bias)


def with_bias(logits_BL: Tensor, bias: nn.Embedding) -> Tensor:
    """Return logits [B, L] with a constant for each label, from a table [L, 1]."""
    ids = torch.arange(logits_BL.shape[1], device=logits_BL.device)
    bias_BL: Tensor = bias(ids.expand(logits_BL.shape)).squeeze(-1)
    return logits_BL + bias_BL


class Places(nn.Module):
    """Learned vectors for where an image token lies: level + row + column.

    Rows and columns of every level share one scale of 8 steps, so that tokens of two levels that
    see the same part of the image are told so.

    Parameters
    ----------
    grids
        Height and width of each level's grid of tokens (at most 8 each).
    width
        D.
    """

    steps = 8

    def __init__(self, grids: list[tuple[int, int]], width: int) -> None:
        super().__init__()
        self.level = scaled_embedding(len(grids), width, 0.1)
        self.row = scaled_embedding(self.steps, width, 0.1)
        self.column = scaled_embedding(self.steps, width, 0.1)
        ids = [
            (level, row * self.steps // height, column * self.steps // breadth)
            for level, (height, breadth) in enumerate(grids)
            for row in range(height)
            for column in range(breadth)
        ]
        self.ids: Tensor
        self.register_buffer("ids", torch.tensor(ids).T.contiguous(), persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """Return [B, N, D] for the N tokens of all levels in order."""
        level, row, column = self.ids[:, None, :].expand(-1, like.shape[0], -1)
        places_BND: Tensor = self.level(level) + self.row(row) + self.column(column)
        return places_BND
