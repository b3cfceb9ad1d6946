"""From inputs to what the head attends to: a memory of tokens for each modality.

Every memory begins with a learned state token, one of two: the modality is there, or it is
not. It is never masked, so no row of a mask is empty and an absent modality still has a say;
it is the learned missing-token.

Shapes: B batch, N tokens, M = 1 + N, K columns, V values of a column (3 + L), T text tokens,
P states of a note (T, or 1 where the encoder pools), S their width, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfusion.data.encode import MISSING, SELECTED
from medfusion.models.blocks.learned import scaled_embedding
from medfusion.models.blocks.precision import at_least_float32


@dataclass(frozen=True)
class Memory:
    """Tokens [B, M, D] of one modality.

    ``keep`` [B, M] is False where a token is masked; ``gate`` [B, M, 1] scales what a token
    gives (None: all of it); ``log_share`` [M] is the logarithm of the weight that a token
    starts with (None: all the same).
    """

    tokens: Tensor
    keep: Tensor
    gate: Tensor | None = None
    log_share: Tensor | None = None


class StateToken(nn.Module):
    """Puts the learned state token before a modality's tokens and masks those of an absent one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = scaled_embedding(2, width, 0.5)

    def forward(self, tokens_BND: Tensor, keep_BN: Tensor, present_B: Tensor) -> Memory:
        """Return the memory of 1 + N tokens."""
        present_B1 = present_B[:, None]
        state_B1D = self.table(present_B1.long())
        return Memory(
            torch.cat([state_B1D, tokens_BND], dim=1),
            torch.cat([torch.ones_like(present_B1), keep_BN & present_B1], dim=1),
        )


class TabularTokens(nn.Module):
    """A token per column: an affine map of its own of the column's value, flags and indicators.

    The rows of a column's map are, in order: of the value, of the missing flag (the learned
    missing embedding), of the selected flag (the column's bias), and of each label's indicator.
    Columns that are not selected are masked, which is not the same as missing; without a single
    known column the modality is absent.
    """

    def __init__(self, columns: int, column_values: int, width: int) -> None:
        super().__init__()
        # A grouped convolution would do, but its hooks compute all K x K blocks to keep K.
        self.maps = scaled_embedding(columns, column_values * width, 0.5)
        self.norm = nn.LayerNorm(width)
        self.state = StateToken(width)
        self._shape = (column_values, width)

    def forward(self, x_BKV: Tensor) -> Memory:
        """Return the memory of 1 + K tokens."""
        columns = torch.arange(x_BKV.shape[1], device=x_BKV.device)
        maps_BKVD = self.maps(columns.expand(x_BKV.shape[0], -1)).unflatten(-1, self._shape)
        tokens_BKD = (x_BKV.unsqueeze(-2) @ maps_BKVD).squeeze(-2)
        selected_BK = x_BKV[..., SELECTED] > 0
        known_BK = selected_BK & (x_BKV[..., MISSING] == 0)
        memory: Memory = self.state(self.norm(tokens_BKD), selected_BK, known_BK.any(dim=1))
        return memory


class TextTokens(nn.Module):
    """A token per state of the text encoder, projected: of each text token, or of the note."""

    def __init__(self, state_width: int, width: int, *, pooled: bool) -> None:
        super().__init__()
        self.project = nn.Linear(state_width, width)
        self.norm = nn.LayerNorm(width)
        self.state = StateToken(width)
        self._pooled = pooled

    def forward(self, states_BPS: Tensor, tokens_BT: Tensor) -> Memory:
        """Return the memory of 1 + P tokens; padding is masked.

        Also where states were computed in advance, ``tokens_BT`` says what is there: a token set
        to 0 since then is hidden. A pooled state keeps what it knows of it, unless all are 0.
        """
        keep_BT = tokens_BT > 0
        present_B = keep_BT.any(dim=1)
        keep_BP = present_B[:, None] if self._pooled else keep_BT
        tokens_BPD = self.norm(at_least_float32(self.project(states_BPS)))
        memory: Memory = self.state(tokens_BPD, keep_BP, present_B)
        return memory
