"""Small data sets, each with one planted effect that one part of the model exists for.

An effect is trained twice at equal budget, with its part and without it, and tested on fresh
studies. What is planted is known, so the data need no file, and the part has no excuse.

Legend: N studies, F features, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medfusion.data.encode import encode_tabular
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection, feature_label_histograms, select_features
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.keystream import Keystream
from medfusion.randomness import stream
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions


@dataclass(frozen=True)
class Drawn:
    """Studies as drawn: model inputs, or float64 features [N, F]; labels float32 [N, L].

    ``truth`` [N] is the true logit of the label that is looked at, the best possible score.
    """

    labels: Tensor
    truth: Tensor
    inputs: dict[str, Tensor]
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A planted effect, the part that should find it, and the budget.

    ``top_n`` selects features with the part, and not without; the other parts are options.
    """

    part: str
    planted: str
    task: Task
    draw: Callable[[int, torch.Generator], Drawn]
    without: MedFusionNetOptions
    studies: int
    steps: int
    label: int = 0
    top_n: int | None = None
    batch_size: int = 32
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Studies:
    """Studies in memory, for `fit`."""

    labels: Tensor
    known: Tensor
    patients: Tensor
    tensors: dict[str, Tensor]

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {name: values[index].to(device) for name, values in self.tensors.items()}


def measure(effect: Effect, seed: int, *, fresh: int = 2000) -> dict[str, float]:
    """Return the AUROC on fresh studies with and without the part, and that of the truth."""
    train = effect.draw(effect.studies, stream(seed, effect.part, "train"))
    test = effect.draw(fresh, stream(seed, effect.part, "test"))
    selection = _selection(effect, train) if effect.top_n else None
    arms = {"with": (MedFusionNetOptions(), selection), "without": (effect.without, None)}
    label = test.labels[:, effect.label]
    found = {"truth": auroc(test.truth, label)}
    for name, (options, chosen) in arms.items():
        logits = _train(
            effect, options, seed, *(_studies(d, effect, chosen) for d in (train, test))
        )
        found[name] = auroc(logits[:, effect.label], label)
    return found


def _train(
    effect: Effect, options: MedFusionNetOptions, seed: int, train: Studies, test: Studies
) -> Tensor:
    """Return the logits [N, L] of the test studies."""
    model = build_model(options, effect.task, seed=seed)
    fit(
        model,
        train,
        options=TrainingOptions(batch_size=effect.batch_size, learning_rate=effect.learning_rate),
        objective=Multilabel(),
        plan=None,
        steps=effect.steps,
        public=stream(seed, effect.part, "order"),
        private=Keystream(bytes(32)),  # without a plan nothing is drawn from it
        device=torch.device("cpu"),
        physical_batch=32,
    )
    model.eval()
    with torch.no_grad():
        rows = torch.arange(len(test.labels)).split(250)
        return torch.cat([model(test.inputs(index, torch.device("cpu"))) for index in rows])


def _selection(effect: Effect, train: Drawn) -> Selection:
    assert train.features is not None
    assert effect.top_n is not None
    histograms = feature_label_histograms(train.features.numpy(), train.labels.numpy(), effect.task)
    return select_features(histograms, effect.task, effect.top_n)


def _studies(drawn: Drawn, effect: Effect, selection: Selection | None) -> Studies:
    tensors = dict(drawn.inputs)
    if drawn.features is not None:
        encoded = encode_tabular(drawn.features.numpy(), effect.task, selection)
        tensors["tabular"] = torch.from_numpy(encoded)
    if "image" in tensors:
        tensors["image_present"] = torch.ones(len(drawn.labels), dtype=torch.bool)
    known = torch.ones_like(drawn.labels)
    return Studies(drawn.labels, known, torch.arange(len(known)), tensors)


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Return the chance that a positive scores above a negative, ties counting half."""
    positive, negative = scores[labels > 0], scores[labels == 0]
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


def numeric_task(features: int, labels: tuple[str, ...]) -> Task:
    """Return a task of numeric features from -3 to 3."""
    columns = {f"x{n:03d}": {"kind": "numeric", "low": -3, "high": 3} for n in range(features)}
    return _task(features=columns, labels=labels)


def image_task(side: int, labels: tuple[str, ...]) -> Task:
    """Return a task of square images of ``side`` pixels."""
    return _task(image={"size": [side, side]}, labels=labels)


def _task(*, labels: tuple[str, ...], **sections: Any) -> Task:
    return Task.parse(
        {
            "task": {"name": "planted", "kind": "multilabel"},
            "labels": {"names": list(labels)},
            **sections,
        },
        where="planted effect",
    )
