"""A small task with everything in it, studies of random content, and models in float64."""

import torch
from torch import Tensor

from medfusion.data.task import Task
from medfusion.models.contract import Model, trainable_state
from medfusion.models.registry import build_model

TASK = Task.parse(
    {
        "task": {"name": "explained", "kind": "multilabel"},
        "image": {"size": [32, 32]},
        "text": {"max_tokens": 9},
        "features": {
            "age": {"kind": "numeric", "low": 0, "high": 120, "unit": "year"},
            "sex": {"kind": "categorical", "values": ["F", "M", "X"]},
            "smoker": {"kind": "binary"},
        },
        "labels": {"names": ["icu", "died"]},
    },
    where="test",
)
K, L, T = len(TASK.columns), 2, 9
CLASSES = Task.parse(
    {
        **TASK.to_json(),
        "task": {"name": "classes", "kind": "multiclass"},
        "labels": {"names": ["well", "icu", "died"], "column": "outcome"},
    },
    where="test",
)


def random_inputs(batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tabular = torch.randn(batch, K, 3 + L, generator=draw, dtype=torch.float64)
    tabular[..., 1] = 0.0
    tabular[..., 2] = 1.0
    tabular[0, 0] = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])  # the first study's age is missing
    tokens = torch.randint(1, 900, (batch, T), generator=draw)
    tokens[:, 6:] = 0
    return {
        "image": torch.randn(batch, 1, 32, 32, generator=draw, dtype=torch.float64),
        "image_present": torch.ones(batch, dtype=torch.bool),
        "tabular": tabular,
        "tokens": tokens,
    }


def random_model(options: object, task: Task = TASK, *, scale: float = 0.1) -> Model:
    """Build a model none of whose parameters is zero."""
    model = build_model(options, task, seed=0).double().eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(scale * torch.randn(value.shape, generator=draw, dtype=torch.float64))
    return model
