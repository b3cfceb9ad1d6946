"""Models that start from the public prevalence of their labels.

Of classes that exclude one another (a softmax) it is the logarithm of each share in place of
its log-odds; what follows holds for both.

Prior initialisation (Lin et al. 2017, arXiv 1708.02002, section 4.1): the log-odds of each
label's prevalence are in the bias of its read-out from the beginning, so the first steps, whose
gradients would otherwise all say "rarer", go to what tells patients apart. Under privacy, where
each patient's gradient is clipped, this counts more than elsewhere.

Logit adjustment (Menon et al. 2021, arXiv 2007.07314) adds the same log-odds to the logits in
the loss alone. With a sigmoid for each label and a learned bias the two train alike, since
their sums begin and move together; they differ in what is used afterwards. Without the
log-odds, scores are no probabilities; with them (and cross-entropy) they are, and every
ranking, AUROC and AUPRC is the same. So only this form is offered.
"""

import math
from collections.abc import Sequence

import torch

from medfusion.models.contract import Model


def start_from_prevalence(
    model: Model, prevalence: Sequence[float], *, exclusive: bool = False
) -> None:
    """Add what ``prevalence`` (one of each label, in (0, 1)) comes to, to the label biases.

    ``exclusive``: each study has exactly one of the labels.
    """
    rest = [1.0 if exclusive else 1.0 - share for share in prevalence]
    constants = torch.tensor([math.log(p / q) for p, q in zip(prevalence, rest, strict=True)])
    with torch.no_grad():
        for bias in model.label_biases():
            bias.add_(constants.view_as(bias))
