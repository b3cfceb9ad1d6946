"""Section ``[training]``: what a site does between two exchanges with the coordinator."""

from math import ceil
from typing import Literal, Self

from pydantic import Field, model_validator

from medfusion.options import Options


class TrainingOptions(Options):
    """Local training of one round; ``batch_size`` is the expected size under privacy.

    ``steps`` sets the optimiser's steps of a round outright; unset, they follow from
    ``local_epochs`` and the site's declared number of patients.
    """

    local_epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _momentum_belongs_to_sgd(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum = {self.momentum} needs optimizer = 'sgd'")
        return self

    def steps_per_round(self, patients_public: int) -> int:
        """Return the steps of one round; a public number, since ``patients_public`` is one."""
        if self.steps is not None:
            return self.steps
        return max(1, ceil(self.local_epochs * patients_public / self.batch_size))
