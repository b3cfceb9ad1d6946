"""The planted effects, one for each part of the model.

Legend: N studies, F features, H height, W width, h and w those of a mark.
"""

import torch
from planted import Drawn, Effect, image_task, numeric_task

from medfusion.models.options import MedFusionNetOptions

_FEATURES = 100
_SIDE = 64  # pixels of an image's height and width
_CUTS = {"x007": 0.6, "x023": -0.5, "x041": 0.3}  # risk above, or below where negative


def _steps_among_noise(count: int, draw: torch.Generator) -> Drawn:
    """Three features matter, and only by the side of a cut on which they lie; 97 do not."""
    x_NF = torch.randn(count, _FEATURES, generator=draw).clamp(-2.99, 2.99)
    truth = torch.full((count,), -4.0)
    for name, cut in _CUTS.items():
        values = x_NF[:, int(name[1:])]
        truth = truth + 3.0 * ((values > cut) if cut > 0 else (values < cut))
    return Drawn(_bernoulli(truth, draw)[:, None], truth, {}, x_NF.double())


def _rare_with_common(count: int, draw: torch.Generator) -> Drawn:
    """The rare label occurs only with the common one, which eight features vote on.

    Its own evidence is one further feature, so what it needs most is what the common label,
    with four times the positives, has learned.
    """
    x_NF = torch.randn(count, 16, generator=draw).clamp(-3, 3)
    votes = 1.5 * x_NF[:, :8].sign().sum(dim=1) - 0.5
    own = 2.5 * x_NF[:, 8] - 2.0
    common = _bernoulli(votes, draw)
    rare = common * _bernoulli(own, draw)
    truth = torch.logit(torch.sigmoid(votes) * torch.sigmoid(own), eps=1e-6)
    return Drawn(torch.stack([common, rare], dim=1), truth, {}, x_NF.double())


def _place_of_a_mark(count: int, draw: torch.Generator) -> Drawn:
    """The label is whether a bright mark of 3 x 3 pixels lies in an odd one of eight rows."""
    row = torch.randint(0, 8, (count,), generator=draw)
    image_NHW = torch.zeros(count, _SIDE, _SIDE)
    down = torch.randint(1, 5, (count,), generator=draw)
    _put(image_NHW, 4.0 * torch.ones(count, 3, 3), _SIDE // 8 * row + down, draw)
    return _image(image_NHW, 0.5, (row % 2).float(), draw)


def _place_of_a_texture(count: int, draw: torch.Generator) -> Drawn:
    """As `_place_of_a_mark`, of the mark with level stripes; one with upright stripes misleads.

    The sign of the stripes is random, so that it takes convolutions to tell the two apart.
    """
    stripes = 3.0 * torch.tensor([-1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    image_NHW = torch.zeros(count, _SIDE, _SIDE)
    rows = torch.randint(0, 8, (2, count), generator=draw)
    for row, mark in zip(rows, (stripes[:, None], stripes[None, :]), strict=True):
        sign = 2.0 * torch.randint(0, 2, (count, 1, 1), generator=draw) - 1.0
        _put(image_NHW, sign * mark.expand(6, 6), _SIDE // 8 * row + 1, draw)
    return _image(image_NHW, 0.3, (rows[0] % 2).float(), draw)


def _small_mark(count: int, draw: torch.Generator) -> Drawn:
    """The label is a bright mark of 3 x 3 pixels anywhere in the noise."""
    label = _bernoulli(torch.zeros(count), draw)
    image_NHW = torch.zeros(count, _SIDE, _SIDE)
    top = torch.randint(1, _SIDE - 4, (count,), generator=draw)
    _put(image_NHW, (4.0 * label)[:, None, None].expand(-1, 3, 3), top, draw)
    return _image(image_NHW, 0.5, label, draw)


def _put(
    image_NHW: torch.Tensor, mark_Nhw: torch.Tensor, top: torch.Tensor, draw: torch.Generator
) -> None:
    """Add a square mark to each image, at its ``top`` and any column."""
    count, side, _ = mark_Nhw.shape
    left = torch.randint(1, _SIDE - side - 1, (count,), generator=draw)
    for down in range(side):
        for right in range(side):
            image_NHW[torch.arange(count), top + down, left + right] += mark_Nhw[:, down, right]


def _image(
    image_NHW: torch.Tensor, noise: float, label: torch.Tensor, draw: torch.Generator
) -> Drawn:
    grain = noise * torch.randn(image_NHW.shape, generator=draw)
    return Drawn(label[:, None], label, {"image": (image_NHW + grain)[:, None]})


def _bernoulli(logit: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return (torch.rand(logit.shape, generator=draw) < torch.sigmoid(logit)).float()


THRESHOLDS = Effect(
    part="thresholds",
    planted="steps in 3 of 100 features",
    task=numeric_task(_FEATURES, ("event",)),
    draw=_steps_among_noise,
    without=MedFusionNetOptions(),
    top_n=4,
    studies=300,
    steps=120,
)
LABEL_QUERIES = Effect(
    part="label_queries",
    planted="a rare label that occurs only with a common one",
    task=numeric_task(16, ("common", "rare")),
    draw=_rare_with_common,
    without=MedFusionNetOptions(head="pooled"),
    label=1,
    studies=400,
    steps=200,
)
LABEL_ATTENTION = Effect(
    part="label_attention",
    planted="a rare label that occurs only with a common one",
    task=numeric_task(16, ("common", "rare")),
    draw=_rare_with_common,
    without=MedFusionNetOptions(label_attention=False),
    label=1,
    studies=400,
    steps=200,
)
ATTENTION_STREAM = Effect(
    part="attention_stream",
    planted="in which row a mark of 3 x 3 pixels lies",
    task=image_task(_SIDE, ("event",)),
    draw=_place_of_a_mark,
    without=MedFusionNetOptions(attention_stream=False),
    studies=600,
    steps=240,
    batch_size=16,
)
EXCHANGE = Effect(
    part="exchange",
    planted="in which row the one of two textures lies",
    task=image_task(_SIDE, ("event",)),
    draw=_place_of_a_texture,
    without=MedFusionNetOptions(exchange=False),
    studies=600,
    steps=240,
    batch_size=16,
)
FPN = Effect(
    part="fpn",
    planted="a mark of 3 x 3 pixels",
    task=image_task(_SIDE, ("event",)),
    draw=_small_mark,
    without=MedFusionNetOptions(fpn=False),
    studies=1500,
    steps=250,
    batch_size=16,
)
EFFECTS = {
    effect.part: effect
    for effect in (THRESHOLDS, ATTENTION_STREAM, EXCHANGE, FPN, LABEL_QUERIES, LABEL_ATTENTION)
}
