"""Section ``[training.loss]``: the losses by name, each with its own constants. Free of torch.

Which of them a task may use hangs on its kind (see `medfusion.objectives.registry`).
"""

from typing import Annotated, Literal

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


class CrossEntropyLoss(Options):
    """Cross-entropy of classes that exclude one another.

    ``class_weights`` multiply the loss of each class's studies: public constants, one for each
    class, never counts of the sites' patients. Without them all count alike.
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None


class MseLoss(Options):
    """Squared error of the target scaled from its public range to [-1, 1]."""

    name: Literal["mse"] = "mse"


class HuberLoss(Options):
    """Squared error up to ``delta`` (of the scaled target), then linear [1]_.

    References
    ----------
    .. [1] Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics
       35, 1964.
    """

    name: Literal["huber"] = "huber"
    delta: float = Field(default=0.25, gt=0, le=2)


class DetectionLoss(Options):
    """The losses of a two-stage detector [1]_, each times its weight.

    Weights are public constants: those that MDF-Net learns beside its network would tell of the
    sites' patients.

    Attributes
    ----------
    objectness, anchor_boxes
        Of the first stage: where something is, and how its anchors are moved there.
    classes, boxes
        Of the second: what it is, and how proposals are moved there.
    masks
        Of a mask head (idle without one): which pixels belong to it.

    References
    ----------
    .. [1] Ren et al., "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497.
    """

    name: Literal["detection"] = "detection"
    objectness: float = Field(default=1.0, ge=0)
    anchor_boxes: float = Field(default=1.0, ge=0)
    classes: float = Field(default=1.0, ge=0)
    boxes: float = Field(default=1.0, ge=0)
    masks: float = Field(default=1.0, ge=0)


LossOptions = (
    BceLoss | FocalLoss | AsymmetricLoss | CrossEntropyLoss | MseLoss | HuberLoss | DetectionLoss
)
