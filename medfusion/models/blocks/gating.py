"""Gates on tokens: how much of what a token offers goes into the fused logits.

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
        self.gate = _nearly_open(width)

    def forward(self, memory: Memory) -> Memory:
        """Return the memory with its gates."""
        return replace(memory, gate=self.gate(memory.tokens).sigmoid())


def _nearly_open(width: int) -> nn.Linear:
    linear = nn.Linear(width, 1)
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, _OPEN)
    return linear
