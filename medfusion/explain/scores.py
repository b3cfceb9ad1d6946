"""A model as captum wants it: a function of one tensor, the other inputs behind it.

Shapes: B batch, L labels.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from medfusion.models.contract import Model

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
