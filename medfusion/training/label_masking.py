"""Label-mask training (Lanchantin et al. 2021, arXiv 2011.14027): some labels are told.

In training a study now and then comes with some of its labels as inputs, and is trained on the
others; so the model learns what one label says of another. In use all are unknown.

Shapes: B batch, L labels.
"""

import torch
from torch import Tensor

from medfusion.models.contract import ABSENT, LABEL_STATES, PRESENT, UNKNOWN

_MOST_REVEALED = 0.75  # of the labels; the paper's


def reveal_labels(labels: Tensor, known: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Return the label states with which to train, int64 [B, L].

    With probability ``rate`` a study has 0 to 3/4 L of its labels revealed, each number as
    likely as another, and which ones at random. A label that the study does not know stays
    unknown though it is drawn.

    Parameters
    ----------
    labels, known
        Float32 [B, L], as in `medfusion.objectives.multilabel`; on the CPU.
    generator
        A CPU generator. Studies are drawn one after another and alike, whatever they know, so
        that a batch cut into pieces draws the same.
    """
    studies, width = labels.shape
    draws = torch.rand(studies, 2 + width, generator=generator)
    counts = (draws[:, 1:2] * (int(_MOST_REVEALED * width) + 1)).long()
    ranks = draws[:, 2:].argsort(dim=1).argsort(dim=1)
    revealed = (draws[:, :1] < rate) & (ranks < counts) & (known > 0)
    told = torch.where(labels > 0, PRESENT, ABSENT)
    return torch.where(revealed, told, UNKNOWN)


def still_to_learn(known: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Return ``known`` [B, L] without the labels that ``inputs`` reveals."""
    states = inputs.get(LABEL_STATES)
    return known if states is None else known * (states == UNKNOWN)
