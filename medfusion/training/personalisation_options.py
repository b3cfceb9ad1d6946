"""Section ``[personalisation]``: a model of each hospital's own, beside the common one."""

from typing import Literal, Self

from pydantic import Field, model_validator

from medfusion.options import Options

LocalPart = Literal["none", "head", "norms"]


class PersonalisationOptions(Options):
    """Parts of the model that stay at the site, and further steps once it is delivered.

    ``local`` names what never travels (`medfusion.models.local_parts`); it is trained privately
    with all else.

    ``steps`` train a model of the site's own from the common one. With ``pull = 0`` this is
    fine-tuning. Above 0 it solves Ditto's problem [1]_, which is to minimise the site's loss plus
    ``pull / 2`` times the squared distance to the common model w; here with the final w, where
    the paper alternates. The result stays at the site, next to the common model, and influences
    nothing that leaves it: it is trained without noise and no plan pays for it, also in a private
    run. A hospital that passes it on passes on what it holds of its patients.

    Attributes
    ----------
    local
        What each site keeps for itself.
    own_steps
        The first steps of each round, which move what is kept alone; the others move the rest
        (FedRep [2]_). With 0 all of the model moves in each step (FedPer).
    steps
        Optimiser steps; 0 makes no personal model.
    learning_rate
        None: that of training.
    pull
        Strength of the pull towards the common model.

    References
    ----------
    .. [1] Li et al., "Ditto: fair and robust federated learning through personalization",
       ICML 2021, arXiv 2012.04221, objective (Ditto).
    .. [2] Collins et al., "Exploiting shared representations for personalized federated learning",
       ICML 2021, arXiv 2102.07078, algorithm 1.
    """

    local: LocalPart = "none"
    own_steps: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    learning_rate: float | None = Field(default=None, gt=0)
    pull: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _steps_use_what_is_set(self) -> Self:
        idle = {"learning_rate": self.learning_rate, "pull": self.pull}
        set_ = [f"{key} = {value}" for key, value in idle.items() if value]
        if set_ and not self.steps:
            raise ValueError(
                f"{', '.join(set_)}: nothing is trained with it at steps = 0; expected steps above "
                "0, or neither learning_rate nor pull"
            )
        if self.own_steps and self.local == "none":
            raise ValueError(
                f"own_steps = {self.own_steps}: they move what sites keep, and local = 'none' "
                "keeps nothing; expected local = 'head' or 'norms'"
            )
        return self
