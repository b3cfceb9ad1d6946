"""Section ``[training]``: what a site does between two exchanges with the coordinator."""

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from medfusion.objectives.options import LossOptions
from medfusion.options import Options
from medfusion.training.recipes import check_recipe


class RateMultipliers(Options):
    """Section ``[training.rate_multipliers]``: a part's learning rate over ``learning_rate``.

    Public constants, for modalities that learn at different speeds (Wang, Tran and Feiszli,
    "What makes training multi-modal classification networks hard?", CVPR 2020). ``linear`` is
    what is linear in fixed features (`medfusion.models.blocks.linear_path`), ``head`` all else
    that reads no modality; a part that is not given keeps ``learning_rate``, and one that the
    model lacks is passed over.
    """

    image: float | None = Field(default=None, gt=0)
    tabular: float | None = Field(default=None, gt=0)
    text: float | None = Field(default=None, gt=0)
    linear: float | None = Field(default=None, gt=0)
    head: float | None = Field(default=None, gt=0)

    def given(self) -> dict[str, float]:
        """Return the multipliers that are set, by part."""
        return self.model_dump(exclude_none=True)


class TrainingOptions(Options):
    """Local training of one round; ``batch_size`` is the expected size under privacy.

    ``steps`` sets the optimiser's steps of a round outright; unset, they follow from
    ``local_epochs`` and the site's declared number of patients. ``augmentation = "light"``
    changes each study a little at each step (see `medfusion.training.augmentation`).
    ``views = K`` trains on the mean loss of K changed versions of each study [1]_; under privacy
    they are averaged before the patient's gradient is clipped, so that they cost time and no
    epsilon. ``schedule = "cosine"`` lets the learning rate fall over the whole run, to 0 after
    its last step. ``small_images`` is the share of the rounds, from the first, that train on
    images of half the size. ``recipe`` names the settings that filled what a config left unset
    (see `medfusion.training.recipes`). ``loss``, unset, is the plainest of the task's kind
    (`medfusion.objectives.registry.LOSSES`).

    References
    ----------
    .. [1] De et al., "Unlocking high-accuracy differentially private image classification
       through scale", 2022, arXiv 2204.13650, section 3 ("augmentation multiplicity").
    """

    recipe: str | None = None
    local_epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "constant"
    rate_multipliers: RateMultipliers = RateMultipliers()
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    loss: Annotated[LossOptions, Field(discriminator="name")] | None = None
    augmentation: Literal["none", "light"] = "none"
    views: int = Field(default=1, ge=1)
    small_images: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("recipe")
    @classmethod
    def _recipe_is_known(cls, name: str | None) -> str | None:
        return name if name is None else check_recipe(name)

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if self.views > 1 and self.augmentation == "none":
            raise ValueError(
                f"views = {self.views} of a study are all the same with augmentation = 'none': "
                "expected augmentation = 'light', or views = 1"
            )
        return self

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
