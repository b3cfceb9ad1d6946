"""Which part of a model a parameter belongs to, told by its name.

A model keeps what reads a modality under ``image``, ``tabular`` or ``text`` (and a language
encoder under ``text_encoder``), and so does what a head keeps for one modality
(``head.layers.0.gather.text``). What is linear in fixed features lies under ``linear``. All the
rest joins modalities and decides: the head.
"""

from typing import Literal

Part = Literal["image", "tabular", "text", "linear", "head"]

_PREFIXES: dict[str, Part] = {
    "image": "image",
    "tabular": "tabular",
    "text": "text",
    "text_encoder": "text",
    "linear": "linear",
}


def part_of(parameter: str) -> Part:
    """Return the part of the parameter called ``parameter`` (as in ``named_parameters``)."""
    first, *others = parameter.split(".")
    if first in _PREFIXES:
        return _PREFIXES[first]
    return next((_PREFIXES[name] for name in others if name in _PREFIXES), "head")
