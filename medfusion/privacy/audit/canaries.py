"""Canaries: patients whose every contribution can be told apart in what a run releases.

A canary's loss reads one row of a table, which nobody else's loss reads, and reads it with a
slope far beyond the clipping norm. So its gradient lies along one coordinate, is clipped like
everybody's, and takes the way of every patient: the draw, the hooks of the layers, the clipped
sum, the noise. The model beside the table sees the canary too, with a gradient of zero.

Shapes: B batch, N studies, L labels, m canaries.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CANARY = "canary"  # key among the inputs: int64 [B], the row of the table; m: no canary
_SLOPE = 200.0  # clipping norms by which a canary's gradient would move its row, unclipped


class CanaryModel(nn.Module):
    """A model with a table of canaries beside it.

    Parameters
    ----------
    model
        Maps inputs to logits [B, L].
    canaries
        m, the rows of the table that canaries read.
    max_grad_norm
        The clipping norm C.
    """

    def __init__(self, model: nn.Module, *, canaries: int, max_grad_norm: float) -> None:
        super().__init__()
        self.model = model
        self.canaries = canaries
        self.table = nn.Embedding(canaries + 1, 1)  # the last row is everybody else's
        self._slope = _SLOPE * max_grad_norm
        self.forget()

    def forget(self) -> None:
        """Set the table to zero."""
        nn.init.zeros_(self.table.weight)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return logits [B, L]: the model's, and zeros that lean on the table for canaries."""
        row = inputs[CANARY]
        others = {name: value for name, value in inputs.items() if name != CANARY}
        logits: Tensor = self.model(others)
        value = self.table(row.unsqueeze(1)).flatten(1)
        # The value is zero whatever the table holds, so the gradient is the same at every step.
        lean = self._slope * (value - value.detach())
        return torch.where((row < self.canaries).unsqueeze(1), lean, logits)


class SyntheticStudies:
    """Ordinary synthetic studies and, after them, one study of each canary that takes part.

    Parameters
    ----------
    inputs
        The ordinary studies' inputs by name, each [N, ...].
    labels
        Float32 [N, L], 0 or 1.
    present
        Int64, the canaries that take part.
    canaries
        m, how many there are.
    """

    def __init__(
        self, inputs: Mapping[str, Tensor], labels: Tensor, present: Tensor, *, canaries: int
    ) -> None:
        self.canaries = canaries
        ordinary = len(labels)
        # A canary's row of inputs counts for nothing; any will do.
        self._source = torch.cat([torch.arange(ordinary), present % max(ordinary, 1)])
        self._rows = torch.cat([torch.full((ordinary,), canaries), present])
        self._inputs = dict(inputs)
        # All labels 1: each pulls the zero logit of a canary the same way.
        self.labels = torch.cat([labels, torch.ones(len(present), labels.shape[1])])
        self.known = torch.ones_like(self.labels)
        self.patients = torch.arange(len(self.labels))
        self.column_features = torch.zeros(0, dtype=torch.int64)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return the inputs of the studies ``index``, with the rows of the table they read."""
        source = self._source[index]
        found = {name: whole[source].to(device) for name, whole in self._inputs.items()}
        return found | {CANARY: self._rows[index].to(device)}
