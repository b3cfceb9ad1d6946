"""Section ``[training.loss]``: the losses by name, each with its own constants. Free of torch."""

from typing import Literal

from pydantic import Field

from medfusion.options import Options


class BceLoss(Options):
    """Binary cross-entropy: the one whose minimum gives calibrated probabilities."""

    name: Literal["bce"] = "bce"


class FocalLoss(Options):
    """Focal loss [1]_; ``gamma`` says how much less an easy label counts, 0 being ``bce``.

    References
    ----------
    .. [1] Lin et al., "Focal loss for dense object detection", ICCV 2017, arXiv 1708.02002.
    """

    name: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0, le=10)


class AsymmetricLoss(Options):
    """Asymmetric loss [1]_, whose easy negatives count less than its easy positives.

    Attributes
    ----------
    gamma_positive, gamma_negative
        Focusing of present and absent labels; both 0 and ``clip = 0`` are ``bce``.
    clip
        Probability below which an absent label costs nothing.

    References
    ----------
    .. [1] Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021, arXiv
       2009.14119; the defaults are those of its experiments.
    """

    name: Literal["asymmetric"] = "asymmetric"
    gamma_positive: float = Field(default=0.0, ge=0, le=10)
    gamma_negative: float = Field(default=4.0, ge=0, le=10)
    clip: float = Field(default=0.05, ge=0, lt=1)


LossOptions = BceLoss | FocalLoss | AsymmetricLoss
