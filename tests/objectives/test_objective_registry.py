"""Which losses go with which kind of task."""

import pytest

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.objectives.detection import Detection
from medfusion.objectives.multiclass import Multiclass
from medfusion.objectives.multilabel import Multilabel
from medfusion.objectives.options import (
    BceLoss,
    CrossEntropyLoss,
    DetectionLoss,
    FocalLoss,
    HuberLoss,
    MseLoss,
)
from medfusion.objectives.registry import LOSSES, loss_of, objective_of
from medfusion.objectives.regression import Regression

LABELS = {
    "multilabel": {"names": ["ill", "dead"]},
    "multiclass": {"column": "state", "names": ["well", "ill", "dead"]},
    "regression": {"names": ["age"], "low": 18, "high": 98, "unit": "year"},
    "detection": {"names": ["nodule"]},
}


def task(kind: str) -> Task:
    return Task.parse(
        {
            "task": {"name": "t", "kind": kind},
            "image": {"size": [32, 32]},
            "features": {"bmi": {"kind": "numeric", "low": 10, "high": 60}},
            "labels": LABELS[kind],
        },
        where="test",
    )


def test_a_kind_has_a_plain_loss_and_its_objective():
    assert [loss_of(task(kind), None) for kind in LOSSES] == [
        BceLoss(),
        CrossEntropyLoss(),
        MseLoss(),
        DetectionLoss(),
    ]
    kinds = [type(objective_of(task(kind))) for kind in LOSSES]
    assert kinds == [Multilabel, Multiclass, Regression, Detection]


@pytest.mark.parametrize(
    ("kind", "loss", "message"),
    [
        ("regression", FocalLoss(), "'focal': .*'regression' has mse, huber"),
        ("multilabel", HuberLoss(), "'huber': .*'multilabel' has bce, focal, asymmetric"),
        ("multiclass", BceLoss(), "'bce': .*'multiclass' has cross_entropy"),
        ("multiclass", CrossEntropyLoss(class_weights=(1.0, 2.0)), "3 classes, found 2"),
    ],
)
def test_another_kinds_loss_is_refused(kind, loss, message):
    with pytest.raises(ConfigError, match=message):
        objective_of(task(kind), loss)
