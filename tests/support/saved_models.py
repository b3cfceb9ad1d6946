"""Model folders as a run leaves them, of networks that nobody trained."""

from pathlib import Path
from typing import Any

import torch

from medfusion.data.task import Task
from medfusion.data.thresholds import Selection
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.options import ModelOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model


def write_model(
    folder: Path,
    options: ModelOptions,
    task: Task,
    *,
    selection: Selection | None = None,
    **card: Any,
) -> Path:
    """Write a model all of whose weights are away from zero; return its folder."""
    model = build_model(options, task, seed=0)
    draw = torch.Generator().manual_seed(7)
    state = {
        name: value.detach() + 0.05 * torch.randn(value.shape, generator=draw)
        for name, value in trainable_state(model).items()
    }
    about = {
        "schema": 1,
        "run": "untrained",
        "task": task.to_json(),
        "task_sha256": task.sha256,
        "model": options.model_dump(mode="json"),
        "frozen_sha256": frozen_sha256(model),
        "initial_weights": None,
        "seed": 0,
        "selection_method": "federated" if selection else "none",
        "top_n": 8,
        "selection": selection.to_json() if selection else None,
        "privacy": {"enabled": False, "simulated": True, "sites": {}},
    }
    save_model(folder, state, about | card)
    return folder
