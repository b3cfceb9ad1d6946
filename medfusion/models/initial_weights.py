"""Where a model's initial weights came from, for ``model.json`` and the report.

What was trained before says something of whomever it was trained on, and the epsilon of the run
that goes on from there does not count it.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medfusion.errors import ConfigError
from medfusion.options import Options


class InitialWeights(Options):
    """The source of initial weights, without any path of this machine.

    Attributes
    ----------
    kind
        ``torchvision`` (a network in torchvision's format), ``medfusion`` (a model folder of a
        run) or ``tensors`` (weights without a description).
    sha256
        Of the file of weights.
    epsilon, delta
        The largest privacy cost at a site that a MedFusion model declares for its own run; None
        where it declares none.
    simulated
        Whether that cost is a simulated one, whose noise protects nobody.
    initial_weights
        What a MedFusion model itself began from, as its ``model.json`` tells.
    """

    kind: Literal["torchvision", "medfusion", "tensors"]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    epsilon: float | None = Field(default=None, strict=True)
    delta: float | None = Field(default=None, strict=True)
    simulated: bool = Field(default=False, strict=True)
    initial_weights: "InitialWeights | None" = None

    @model_validator(mode="after")
    def _epsilon_has_its_delta(self) -> Self:
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("expected epsilon and delta, or neither")
        return self

    @classmethod
    def of_model(cls, card: Mapping[str, Any], sha256: str) -> Self:
        """Read what a MedFusion model's card declares.

        Raises
        ------
        ConfigError
            If it is not what a run writes.
        """
        try:
            told = _Card.model_validate(card)
        except ValidationError:
            raise ConfigError(
                "expected what a run writes in model.json under privacy and initial_weights, "
                "found something else"
            ) from None
        dearest = max(told.privacy.sites.values(), key=lambda plan: plan.epsilon, default=None)
        return cls(
            kind="medfusion",
            sha256=sha256,
            epsilon=dearest.epsilon if dearest else None,
            delta=dearest.delta if dearest else None,
            simulated=told.privacy.simulated if dearest else False,
            initial_weights=told.initial_weights,
        )


class _Plan(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    epsilon: float
    delta: float


class _Privacy(BaseModel):
    simulated: bool = Field(default=False, strict=True)
    sites: dict[str, _Plan] = {}


class _Card(BaseModel):
    """What is read of a card; it holds more."""

    privacy: _Privacy = _Privacy()
    initial_weights: InitialWeights | None = None
