"""Losses in which easy labels count less, for labels that are mostly absent.

Every label of every sample has a loss of its own: the weights are functions of its own logit,
never of counts in a batch or at a site, which would couple patients. All is written with the
logarithms of sigmoids, so that value and gradient are finite at every finite logit.

Shapes: B batch, L labels.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_NEARLY_ZERO, _NEARLY_ONE = 1e-12, 1.0 - 1e-6


def focal(logits: Tensor, labels: Tensor, *, gamma: float) -> Tensor:
    """Return ``-(1 - q)^gamma log q``, q being the probability of the true class, [B, L] [1]_.

    References
    ----------
    .. [1] Lin et al., "Focal loss for dense object detection", ICCV 2017, arXiv 1708.02002.
    """
    return _focused(logits * (2.0 * labels - 1.0), gamma)


def asymmetric(
    logits: Tensor, labels: Tensor, *, gamma_positive: float, gamma_negative: float, clip: float
) -> Tensor:
    """Return each label's asymmetric loss, [B, L] [1]_.

    A present label of probability p costs ``-(1 - p)^gamma_positive log p``; an absent one
    ``-m^gamma_negative log(1 - m)`` with ``m = max(p - clip, 0)``.

    References
    ----------
    .. [1] Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021, arXiv
       2009.14119.
    """
    absent = (
        _focused_above(logits, gamma_negative, clip) if clip else _focused(-logits, gamma_negative)
    )
    return torch.where(labels > 0, _focused(logits, gamma_positive), absent)


def _focused(logits: Tensor, gamma: float) -> Tensor:
    """Return ``-(1 - p)^gamma log p``, where p is the sigmoid of ``logits``."""
    # A power of the probability itself has no finite gradient where that underflows.
    return -torch.exp(gamma * logsigmoid(-logits)) * logsigmoid(logits)


def _focused_above(logits: Tensor, gamma: float, clip: float) -> Tensor:
    """Return ``-m^gamma log(1 - m)`` with ``m = max(p - clip, 0)`` and p as in `_focused`."""
    # Not 0 but nearly: there a power below 1 has no finite gradient.
    shifted = (torch.sigmoid(logits) - clip).clamp(min=_NEARLY_ZERO, max=_NEARLY_ONE)
    return -(shifted**gamma) * torch.log1p(-shifted)
