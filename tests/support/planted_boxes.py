"""Squares of one look and two labels: only a clinical value tells which label is meant.

The value is the feature ``sign``, above 0 for the first label and below for the second.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medfusion.data.encode import encode_tabular
from medfusion.data.task import Task
from medfusion.evaluation.box_matching import Drawn
from medfusion.evaluation.detection_metrics import detection_figures
from medfusion.models.mdf_net import MdfNet
from medfusion.models.options import MdfNetOptions
from medfusion.models.registry import build_model
from medfusion.objectives.registry import objective_of
from medfusion.prediction import predict_logits
from medfusion.privacy.keystream import Keystream
from medfusion.randomness import stream
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions

LABELS = ("above", "below")
MOST = 2


def square_task(side: int = 32) -> Task:
    return Task.parse(
        {
            "task": {"name": "squares", "kind": "detection"},
            "image": {"size": [side, side]},
            "boxes": {"most": MOST},
            "features": {"sign": {"kind": "numeric", "low": -1, "high": 1}},
            "labels": {"names": list(LABELS)},
        },
        where="planted",
    )


@dataclass(frozen=True)
class Squares:
    """Studies in memory, for `fit`; a square in each image, 10 to 16 pixels a side."""

    labels: Tensor
    known: Tensor
    patients: Tensor
    column_features: Tensor
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {name: values[index].to(device) for name, values in self.tensors.items()}


def draw_squares(count: int, seed: int, *, side: int = 32) -> Squares:
    draw = torch.Generator().manual_seed(seed)
    size = torch.randint(10, 17, (count, 2), generator=draw)
    near = (torch.rand(count, 2, generator=draw) * (side - size)).long()
    far = near + size
    image = 0.3 * torch.randn(count, 1, side, side, generator=draw) - 0.5
    for row, ((x0, y0), (x1, y1)) in enumerate(zip(near, far, strict=True)):
        image[row, 0, y0:y1, x0:x1] += 1.0
    sign = 2.0 * torch.rand(count, 1, generator=draw) - 1.0
    kind = torch.where(sign[:, 0] > 0, 1, 2)
    boxes, classes = torch.zeros(count, MOST, 4), torch.zeros(count, MOST, dtype=torch.int64)
    boxes[:, 0], classes[:, 0] = torch.cat([near, far], dim=1).float(), kind
    task = square_task(side)
    return Squares(
        labels=torch.nn.functional.one_hot(kind - 1, 2).float(),
        known=torch.ones(count, 2),
        patients=torch.arange(count),
        column_features=torch.zeros(1, dtype=torch.int64),
        tensors={
            "image": image.clamp(-1, 1),
            "image_present": torch.ones(count, dtype=torch.bool),
            "tabular": torch.from_numpy(encode_tabular(sign.double().numpy(), task, None)),
            "boxes": boxes,
            "box_classes": classes,
        },
    )


def learn(
    options: MdfNetOptions, studies: Squares, *, steps: int, rate: float, seed: int = 0
) -> MdfNet:
    """Train a detector on the studies, 16 a step."""
    model = build_model(options, square_task(), seed=seed)
    fit(
        model,
        studies,
        options=TrainingOptions(batch_size=16, learning_rate=rate, schedule="cosine"),
        objective=objective_of(square_task()),
        plan=None,
        steps=steps,
        public=stream(seed, "order"),
        private=Keystream(bytes(32)),  # without a plan nothing is drawn from it
        device=torch.device("cpu"),
        physical_batch=32,
    )
    return model


def precision(model: MdfNet, studies: Squares) -> dict[str, float]:
    """Return the mean of each figure over the two labels."""
    tensors = studies.tensors
    truth = Drawn(tensors["boxes"].numpy(), tensors["box_classes"].numpy(), studies.known.numpy())
    found = predict_logits(model, studies, torch.device("cpu"))[None, None]
    figures = detection_figures(found, truth, studies.patients.numpy(), resamples=0)
    return {name: figure.itself(0) for name, figure in figures.items()}
