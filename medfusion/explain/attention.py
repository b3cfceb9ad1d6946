"""What the label queries of a MedFusionNet look at: regions, columns, tokens, one another.

Weights say where a query looks, not what it makes of what it sees: each modality has a softmax of
its own, whose weights add up to 1 also where the modality hardly matters. How much of it reaches
the label is the length of the evidence.

Shapes: B batch, L labels, M tokens of a memory (the first is the state token), D width.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medfusion.explain.scores import as_in_use
from medfusion.models.blocks.attention import Attention
from medfusion.models.blocks.heads import LabelLayer, QueryHead
from medfusion.models.medfusion_net import MedFusionNet


@dataclass(frozen=True, eq=False)
class LabelAttention:
    """Means over the heads of the attention, and over its layers.

    Attributes
    ----------
    weights
        By modality, [B, L, M].
    evidence
        By modality, the length of what each label gathered there, [B, L].
    among_labels
        How much of each label (last axis) a label takes in, [B, L, L]; None without attention
        among labels.
    """

    weights: dict[str, Tensor]
    evidence: dict[str, Tensor]
    among_labels: Tensor | None


def reads_by_queries(model: nn.Module) -> bool:
    """Say whether the model has label queries to look at."""
    return isinstance(model, MedFusionNet) and isinstance(model.head, QueryHead)


@torch.no_grad()
def label_attention(model: MedFusionNet, inputs: dict[str, Tensor]) -> LabelAttention:
    """Return where the labels' queries look; the model must be one that `reads_by_queries`."""
    head = model.head
    assert isinstance(head, QueryHead)
    layers = [layer for layer in head.layers if isinstance(layer, LabelLayer)]
    gathers = [(name, one) for layer in layers for name, one in layer.gather.items()]
    among = [layer.among_labels for layer in layers if layer.among_labels is not None]
    looks = {id(one): _Look() for one in (*among, *(one for _, one in gathers))}
    with as_in_use(model), ExitStack() as hooks:
        for one in (*among, *(one for _, one in gathers)):
            hooks.enter_context(one.register_forward_hook(looks[id(one)]))
        model(inputs)
    by_name = {name: [looks[id(one)] for n, one in gathers if n == name] for name, _ in gathers}
    return LabelAttention(
        weights={name: _mean(look.weights for look in of) for name, of in by_name.items()},
        evidence={name: _mean(look.lengths for look in of) for name, of in by_name.items()},
        among_labels=_mean(looks[id(one)].weights for one in among) if among else None,
    )


class _Look:
    """A hook that keeps what an attention layer looked at, and how much came of it."""

    weights: Tensor
    lengths: Tensor

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(layer, Attention)
        self.weights = layer.weights(*arguments).mean(dim=1)
        self.lengths = output.norm(dim=-1)


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)


def on_the_image(model: MedFusionNet, weights_BLM: Tensor) -> list[Tensor]:
    """Lay weights of the image's memory out on the grids of its tokens, [B, L, H, W] of each."""
    grids = model.image.streams.grids
    counts = [height * width for height, width in grids]
    parts = torch.split(weights_BLM[..., 1:], counts, dim=-1)
    return [part.reshape(*part.shape[:-1], *grid) for part, grid in zip(parts, grids, strict=True)]
