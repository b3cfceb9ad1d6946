"""A small task of detection, and inputs with boxes for a detector."""

import torch
from torch import Tensor

from medfusion.data.task import Task

MOST = 4  # boxes of a study


def detection_task(side: int = 32, labels: tuple[str, ...] = ("nodule", "effusion")) -> Task:
    return Task.parse(
        {
            "task": {"name": "boxes", "kind": "detection"},
            "image": {"size": [side, side]},
            "boxes": {"most": MOST},
            "features": {
                "age": {"kind": "numeric", "low": 0, "high": 120},
                "sex": {"kind": "categorical", "values": ["F", "M", "X"]},
                "smoker": {"kind": "binary"},
            },
            "labels": {"names": list(labels)},
        },
        where="test",
    )


def draw_inputs(task: Task, batch: int, seed: int = 0, dtype=torch.float64) -> dict[str, Tensor]:
    """Random studies; the first has no box, the others one to `MOST` of them."""
    draw = torch.Generator().manual_seed(seed)
    (side, _), labels = task.image.size, len(task.labels.names)
    columns = len(task.columns)
    tabular = torch.randn(batch, columns, 3 + labels, generator=draw, dtype=dtype)
    tabular[..., 1] = (torch.rand(batch, columns, generator=draw) < 0.2).to(dtype)
    tabular[..., 2] = 1.0
    ends = torch.rand(2, batch, MOST, 2, generator=draw, dtype=dtype) * side
    near, far = ends.amin(0), ends.amax(0)
    boxes = torch.cat([near, torch.maximum(far, near + 4.0).clamp(max=side)], dim=-1)
    classes = torch.randint(1, 1 + labels, (batch, MOST), generator=draw)
    counts = torch.randint(1, 1 + MOST, (batch, 1), generator=draw)
    counts[0] = 0
    classes = classes * (torch.arange(MOST) < counts)
    return {
        "image": torch.randn(batch, 1, side, side, generator=draw, dtype=dtype),
        "image_present": torch.ones(batch, dtype=torch.bool),
        "tabular": tabular,
        "boxes": boxes * (classes > 0)[..., None],
        "box_classes": classes,
    }
