"""Volumes of the models' tests: a task with volumes, and its inputs."""

import torch
from torch import Tensor

from medfusion.data.task import Task

SIDES = (16, 18, 20)


def volume_task(kind: str = "regression") -> Task:
    labels = {
        "regression": {"names": ["age"], "low": 18, "high": 98},
        "multilabel": {"names": ["ill"]},
    }[kind]
    return Task.parse(
        {
            "task": {"name": "volumes", "kind": kind},
            "image": {"dims": 3, "size": list(SIDES)},
            "features": {
                "sex": {"kind": "categorical", "values": ["F", "M"]},
                "education": {"kind": "numeric", "low": 0, "high": 5},
            },
            "labels": labels,
        },
        where="test",
    )


def volume_inputs(batch: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tabular = torch.randn(batch, 3, 4, generator=draw, dtype=torch.float64)
    tabular[..., 1], tabular[..., 2] = 0.0, 1.0
    return {
        "image": torch.randn(batch, 1, *SIDES, generator=draw, dtype=torch.float64),
        "image_present": torch.ones(batch, dtype=torch.bool),
        "tabular": tabular,
    }
