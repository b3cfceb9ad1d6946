"""Gates on tokens: how much of what a token offers becomes evidence, for all heads.

A gate starts nearly open, at .88 whatever the token, and hangs on that token alone.

Shapes: B batch, M tokens of a memory, D width.
"""

from dataclasses import replace

from torch import nn

from medfusion.models.blocks.tokens import Memory

_OPEN = 2.0  # of a sigmoid


class TokenGate(nn.Module):
    """A gate per token of a memory, which scales what attention takes from that token.

    Attention weights sum to one, so without a gate a modality of which no token is of use still
    speaks as loud as any other. (Value gating, Qiu et al. 2025, arXiv 2505.06708.)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, _OPEN)

    def forward(self, memory: Memory) -> Memory:
        """Return the memory with its gates."""
        return replace(memory, gate=self.gate(memory.tokens).sigmoid())
