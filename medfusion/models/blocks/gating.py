"""Gates: how much of what a modality offers goes into the fused logits.

Both gates start nearly open, at .88 whatever the inputs, and leave the unimodal heads alone:
a token's gate is computed from that token, a modality's gate acts on the fused path only.

Shapes: B batch, L labels, M tokens of a memory, D width, G gated modalities.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from medfusion.models.blocks.tokens import Memory

_OPEN = 2.0  # of a sigmoid


class ModalityGate(nn.Module):
    """A gate per modality, and per label where each label gathers evidence of its own.

    The gated multimodal unit (Arevalo et al. 2017, arXiv 1702.01992): each gate sees what all
    modalities offer, so that one may close because another tells more. Its gates are a number
    per modality here, not one per dimension.
    """

    def __init__(self, width: int, *, queries: int, modalities: int) -> None:
        super().__init__()
        self.gate = _nearly_open((queries + modalities) * width, modalities)

    def forward(self, evidence: Sequence[Tensor], *queries: Tensor) -> list[Tensor]:
        """Return the gated evidence of each modality; all tensors are [B, L, D] or [B, D]."""
        gates_G = self.gate(torch.cat([*queries, *evidence], dim=-1)).sigmoid().unbind(-1)
        return [each * gate.unsqueeze(-1) for each, gate in zip(evidence, gates_G, strict=True)]


class TokenGate(nn.Module):
    """A gate per token of a memory, which scales what attention takes from that token.

    Attention weights sum to one, so without a gate a modality of which no token is of use still
    speaks as loud as any other. (Value gating, Qiu et al. 2025, arXiv 2505.06708.)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = _nearly_open(width, 1)

    def forward(self, memory: Memory) -> Memory:
        """Return the memory with its gates."""
        return replace(memory, gate=self.gate(memory.tokens).sigmoid())


def _nearly_open(width: int, gates: int) -> nn.Linear:
    linear = nn.Linear(width, gates)
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, _OPEN)
    return linear
