"""Networks of size 121 with few layers, and models that are the beginning of others."""

import torch
from torchvision.models import DenseNet

from medfusion.data.task import Task
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model

SHORT = (2, 2, 2, 2)  # layers of size 121 here


def make_task(*, labels=("icu", "died"), features=("age",), channels=1, pixels=32) -> Task:
    return Task.parse(
        {
            "task": {"name": "init", "kind": "multilabel"},
            "image": {"size": [pixels, pixels], "channels": channels},
            "features": {f: {"kind": "numeric", "low": 0, "high": 1} for f in features},
            "labels": {"names": list(labels)},
        },
        where="test",
    )


TASK = make_task()


def densenet() -> DenseNet:
    torch.manual_seed(5)
    network = DenseNet(32, SHORT, 64)
    for name, value in network.state_dict().items():
        if "running" in name:
            value.copy_(0.2 * torch.rand(value.shape) + (1.0 if "var" in name else 0.0))
    return network


def build(task: Task = TASK, *, seed: int = 0, weights_follow: bool = False, **options):
    options = MedFusionNetOptions(**{"size": "121"} | options)
    return build_model(options, task, seed=seed, weights_follow=weights_follow)


def save(folder, model, options: MedFusionNetOptions, task: Task = TASK):
    card = {
        "task": task.to_json(),
        "model": options.model_dump(mode="json"),
        "frozen_sha256": frozen_sha256(model),
        "seed": 0,
        "selection": None,
        "selection_method": "none",
        "top_n": 1,
    }
    save_model(folder, trainable_state(model), card)
    return folder


def trained(options: MedFusionNetOptions, task: Task = TASK):
    """A model whose weights no seed gives."""
    model = build_model(options, task, seed=0)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(1.0)
    return model


def same(first, second, part: str) -> set[bool]:
    theirs = dict(second.named_parameters())
    return {
        torch.equal(value, theirs[name])
        for name, value in first.named_parameters()
        if name.startswith(part)
    }
