"""Which objective a task has, and which losses go with it.

Importing this file loads no torch; an objective's module is imported when it is built.
"""

from typing import TYPE_CHECKING

from medfusion.data.task import Kind, Task
from medfusion.errors import ConfigError
from medfusion.objectives.options import (
    AsymmetricLoss,
    BceLoss,
    CrossEntropyLoss,
    DetectionLoss,
    FocalLoss,
    HuberLoss,
    LossOptions,
    MseLoss,
)

if TYPE_CHECKING:
    from medfusion.objectives.objective import Objective

# The first of each is the one that a config gets which names none.
LOSSES: dict[Kind, tuple[type[LossOptions], ...]] = {
    "multilabel": (BceLoss, FocalLoss, AsymmetricLoss),
    "multiclass": (CrossEntropyLoss,),
    "regression": (MseLoss, HuberLoss),
    "detection": (DetectionLoss,),
}


def loss_of(task: Task, loss: LossOptions | None) -> LossOptions:
    """Return the loss that a task is trained with, given what the config says.

    Raises
    ------
    ConfigError
        If the loss belongs to another kind of task, or weighs another number of classes.
    """
    allowed = LOSSES[task.task.kind]
    if loss is None:
        return allowed[0]()
    if not isinstance(loss, allowed):
        names = ", ".join(one.model_fields["name"].default for one in allowed)
        raise ConfigError(
            f"training.loss.name = {loss.name!r}: a task of kind {task.task.kind!r} has {names}"
        )
    if isinstance(loss, CrossEntropyLoss) and loss.class_weights is not None:
        expected, found = len(task.labels.names), len(loss.class_weights)
        if found != expected:
            raise ConfigError(
                f"training.loss.class_weights: expected one for each of the {expected} classes, "
                f"found {found}"
            )
    return loss


def objective_of(task: Task, loss: LossOptions | None = None) -> "Objective":
    """Return the objective of a task; raises `ConfigError` as `loss_of` does."""
    chosen = loss_of(task, loss)
    if isinstance(chosen, CrossEntropyLoss):
        from medfusion.objectives.multiclass import Multiclass

        return Multiclass(chosen)
    if isinstance(chosen, MseLoss | HuberLoss):
        from medfusion.objectives.regression import Regression

        return Regression(*task.labels.range, chosen)
    if isinstance(chosen, DetectionLoss):
        from medfusion.objectives.detection import Detection

        return Detection(chosen)
    from medfusion.objectives.multilabel import Multilabel

    return Multilabel(chosen)
