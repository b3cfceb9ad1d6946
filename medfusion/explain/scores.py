"""A model as captum wants it: a function of one tensor, the other inputs behind it.

Shapes: B batch, L labels, M tokens of the image's memory, D width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from medfusion.models.blocks.inside import Inside
from medfusion.models.blocks.tokens import Memory
from medfusion.models.contract import Model
from medfusion.models.medfusion_net import MedFusionNet

# What was computed of another input in advance, and no longer holds once that one is changed.
_MADE_OF = {"image": ("image_features",), "tokens": ("text_states",)}


class ScoresOf:
    """The scores [B, L] as a function of the input called ``name`` and of all the others.

    They are the model's outputs; where the labels are ``exclusive`` classes, the log-odds of each.

    Attributes
    ----------
    changed
        The input that is explained.
    others
        The inputs that stay; what was computed of ``changed`` in advance is left out, unless it is
        ``held``: then it stays as well.
    """

    def __init__(
        self,
        model: Model,
        inputs: Mapping[str, Tensor],
        name: str,
        *,
        exclusive: bool = False,
        held: bool = False,
    ) -> None:
        stale = () if held else _MADE_OF.get(name, ())
        kept = {key: x for key, x in inputs.items() if key != name and key not in stale}
        self._model, self._exclusive = model, exclusive
        self._names = (name, *kept)
        self.changed = inputs[name]
        self.others = tuple(kept.values())

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Return the scores for tensors in the order ``changed``, ``others``."""
        scores: Tensor = self._model(dict(zip(self._names, tensors, strict=True)))
        return _log_odds(scores) if self._exclusive else scores


def _log_odds(logits_BL: Tensor) -> Tensor:
    """Return the log-odds of each class's softmax probability, [B, L]."""
    itself = torch.eye(logits_BL.shape[1], dtype=torch.bool, device=logits_BL.device)
    others_BLL = logits_BL[:, None].masked_fill(itself, -torch.inf)
    return logits_BL - others_BLL.logsumexp(dim=-1)


@contextmanager
def as_in_use(model: Model) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def reads_image_apart(model: Model) -> TypeGuard[MedFusionNet]:
    """Whether a model has an image that it reads without a look at the columns."""
    apart = isinstance(model, MedFusionNet) and "image" in model.modalities
    return apart and not model.fuses_columns


def reads_image_anew(model: Model) -> bool:
    """Whether a model reads whole images again whenever its other inputs change."""
    return "image" in model.modalities and not reads_image_apart(model)


@contextmanager
def image_read_once(model: Model, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield inputs for a model that has read their images: the rest may change, at little cost.

    In a MedFusionNet the image's tokens stand in place of the image until the block ends. Where
    columns reach into what becomes of the image, as in other models, nothing is kept.
    """
    if not reads_image_apart(model):
        yield inputs
        return
    with torch.no_grad():
        memory = model.read_image(inputs)
        read = {**inputs, "image": memory.tokens}
        if model.linear is not None and "image_features" not in inputs:
            read["image_features"] = model.linear.features(inputs["image"])
    whole = model.image
    model.register_module("image", _ReadImage(memory))
    try:
        yield read
    finally:
        model.image = whole


class _ReadImage(nn.Module):
    """Takes tokens for an image, and makes the memory of them that the image's would be."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._log_share = memory.log_share

    def forward(self, tokens_BMD: Tensor, present_B: Tensor, inside: Inside) -> Memory:
        """Return the memory, in which columns have no say."""
        present_BM = present_B[:, None].repeat(1, tokens_BMD.shape[1])
        present_BM[:, 0] = True  # the state token
        return Memory(tokens_BMD, present_BM, log_share=self._log_share)
