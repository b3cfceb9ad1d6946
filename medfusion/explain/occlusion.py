"""Occlusion [1]_: how a label's score changes when a part of the image is hidden.

It sees all that a model makes of the image, the linear path included, and also works on volumes.

Shapes: B batch, L labels, C channels, [...] two or three axes of space.

References
----------
.. [1] Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014,
   arXiv 1311.2901.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from medfusion.explain.scores import ScoresOf, as_in_use
from medfusion.models.contract import Model

WINDOWS = {2: 8, 3: 5}  # along each side, by axes of space


@torch.no_grad()
def occlusion(model: Model, inputs: dict[str, Tensor], *, exclusive: bool = False) -> Tensor:
    """Return how much each window speaks for each label, [B, L, ...]: a value for each window.

    It is the score of the whole image minus the one with the window at the image's mean. Windows
    do not overlap; there are at most `WINDOWS` along each side. ``exclusive``: see
    `medfusion.explain.scores.ScoresOf`.
    """
    scores = ScoresOf(model, inputs, "image", exclusive=exclusive)
    image = scores.changed
    space = image.shape[2:]
    windows = [_windows(side, WINDOWS[len(space)]) for side in space]
    mean = image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)
    with as_in_use(model):
        whole = scores(image, *scores.others)
        found = whole.new_zeros(*whole.shape, *(len(along) for along in windows))
        for place in product(*(range(len(along)) for along in windows)):
            window: tuple[Any, ...] = (
                ...,
                *(w[one] for w, one in zip(windows, place, strict=True)),
            )
            here: tuple[Any, ...] = (..., *place)
            hidden = image.clone()
            hidden[window] = mean
            found[here] = whole - scores(hidden, *scores.others)
    return found


def on_pixels(windows: Tensor, space: Sequence[int]) -> Tensor:
    """Give every pixel the value of its window: from [..., windows] to [..., *space]."""
    for axis, side in enumerate(space, windows.ndim - len(space)):
        lengths = [w.stop - w.start for w in _windows(side, WINDOWS[len(space)])]
        repeats = torch.tensor(lengths, device=windows.device)
        windows = windows.repeat_interleave(repeats, dim=axis)
    return windows


def _windows(side: int, count: int) -> list[slice]:
    """Cut a side into at most ``count`` windows of one length (the last may be shorter)."""
    length = -(-side // count)
    return [slice(start, min(start + length, side)) for start in range(0, side, length)]
