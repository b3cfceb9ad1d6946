"""FedRep's two turns of a round [1]_: first what is a site's own, then what sites share.

References
----------
.. [1] Collins et al., "Exploiting shared representations for personalized federated learning",
   ICML 2021, arXiv 2102.07078, algorithm 1: some steps of the head on the representation that was
   received, then those of the representation.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from itertools import count

from torch import nn


def in_turns(
    before_update: Callable[[], None] | None,
    trainable: Mapping[str, nn.Parameter],
    *,
    own: AbstractSet[str],
    own_steps: int,
) -> Callable[[], None]:
    """Return what leaves each step of a round only the gradients of the part whose turn it is.

    Under privacy a step's gradients were clipped and noised together before: what is dropped of
    them costs budget and tells nothing.

    Parameters
    ----------
    before_update
        Called first, each time.
    own
        Names of the parameters that move in the first ``own_steps`` steps and not afterwards.
    """
    steps = count()

    def leave_one_part() -> None:
        if before_update is not None:
            before_update()
        owns_turn = next(steps) < own_steps
        for name, parameter in trainable.items():
            if (name in own) != owns_turn:
                parameter.grad = None

    return leave_one_part
