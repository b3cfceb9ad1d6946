"""What a site does for a strategy that lets it remember something between rounds.

The memory is a tensor for each trained parameter, zero before the first round. From it follows a
shift of every gradient of the round, and from what the round was given and led to follows the
next memory. It reads the model received, what came with it, and the reply: nothing that has not
left the site. Under privacy it is post-processing of releases that were paid for, so that it may
influence later ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from medfusion.training.options import TrainingOptions

State = Mapping[str, Tensor]
"""Trained parameters, or as many tensors of their shapes, by name; float32."""


@dataclass(frozen=True, eq=False)
class Round:
    """What a site was given for a round.

    Attributes
    ----------
    received
        The model.
    guide
        What the strategy sends beside the model; empty if it sends none.
    proximal_mu
        Strength of the pull towards the model received.
    travel
        Learning rate times steps: what a gradient that stays the same moves the weights by,
        over its length.
    """

    received: State
    guide: State
    proximal_mu: float
    travel: float


class SiteRule(Protocol):
    """A strategy's part at the site."""

    def shift(self, memory: State, given: Round) -> State:
        """Return what is added to each gradient of the round, after clipping and noise."""
        ...

    def next_memory(self, memory: State, given: Round, sent: State) -> State:
        """Return the memory after a round whose reply holds the model ``sent``."""
        ...


def travel_of(training: TrainingOptions, patients_public: int) -> float:
    """Return a site's `Round.travel`: its steps times the learning rate, a public number."""
    return training.steps_per_round(patients_public) * training.learning_rate
