"""A model as captum wants it: a function of one tensor, the other inputs behind it.

Shapes: B batch, L labels, M tokens of the image's memory, D width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medfusion.models.blocks.tokens import Memory
from medfusion.models.contract import Model
from medfusion.models.medfusion_net import MedFusionNet

# What was computed of another input in advance, and no longer holds once that one is changed.
_MADE_OF = {"image": ("image_features",), "tokens": ("text_states",)}


class ScoresOf:
    """The outputs [B, L] as a function of the input called ``name`` and of all the others.

    Attributes
    ----------
    changed
        The input that is explained.
    others
        The inputs that stay; what was computed of ``changed`` in advance is left out.
    """

    def __init__(self, model: Model, inputs: Mapping[str, Tensor], name: str) -> None:
        stale = _MADE_OF.get(name, ())
        kept = {key: x for key, x in inputs.items() if key != name and key not in stale}
        self._model = model
        self._names = (name, *kept)
        self.changed = inputs[name]
        self.others = tuple(kept.values())

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Return the outputs for tensors in the order ``changed``, ``others``."""
        scores: Tensor = self._model(dict(zip(self._names, tensors, strict=True)))
        return scores


@contextmanager
def as_in_use(model: Model) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def image_read_once(model: Model, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield inputs for a model that has read their images: the rest may change, at little cost.

    In a MedFusionNet the image's tokens stand in place of the image until the block ends. In other
    models columns reach into what becomes of the image, and nothing is kept.
    """
    if not isinstance(model, MedFusionNet) or "image" not in model.modalities:
        yield inputs
        return
    with torch.no_grad():
        memory = model.image(inputs["image"], inputs["image_present"])
        read = {**inputs, "image": memory.tokens}
        if model.linear is not None and "image_features" not in inputs:
            read["image_features"] = model.linear.wavelets(inputs["image"])
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

    def forward(self, tokens_BMD: Tensor, present_B: Tensor) -> Memory:
        """Return the memory."""
        present_BM = present_B[:, None].repeat(1, tokens_BMD.shape[1])
        present_BM[:, 0] = True  # the state token
        return Memory(tokens_BMD, present_BM, log_share=self._log_share)
