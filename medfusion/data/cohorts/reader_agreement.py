"""Boxes that several readers drew independently, made into one truth by majority."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.box_matching import overlaps

Corners = tuple[float, ...]
"""Left, top, right, bottom in pixels."""
Reading = Mapping[str, Sequence[Corners]]
"""Finding -> the boxes that one reader drew around it."""

SAME_PLACE = 0.4  # IoU, at which the challenge of VinDr-CXR called a box found


def agreed_boxes(drawn: Mapping[str, Sequence[Corners]]) -> list[Corners] | None:
    """Return the boxes of one finding that more than half of an image's readers drew.

    Boxes of different readers are joined, those that overlap most (by IoU) first, as long as their
    means overlap by `SAME_PLACE`, and never two of one reader. The order of readers and boxes
    changes nothing.

    Parameters
    ----------
    drawn
        Reader -> boxes, of every reader of the image; an empty list is a reader who saw none.

    Returns
    -------
    The mean box of each place that a majority drew; an empty list if no majority drew any box; None
    if a majority drew boxes, but nowhere the same.
    """
    majority = len(drawn) // 2 + 1
    if sum(bool(boxes) for boxes in drawn.values()) < majority:
        return []
    places = _places(sorted((box, reader) for reader, boxes in drawn.items() for box in boxes))
    means = [_mean(place) for place in places if len(place) >= majority]
    return sorted(means) or None


_Place = list[tuple[Corners, str]]


def _places(drawn: _Place) -> list[_Place]:
    """Join boxes into places, each with one box of a reader at most."""
    places = [[one] for one in drawn]
    while True:
        means = np.array([_mean(place) for place in places]).reshape(-1, 4)
        shares, _ = overlaps(means, means)
        pairs = [
            (-shares[one, other], one, other)
            for one, other in combinations(range(len(places)), 2)
            if shares[one, other] >= SAME_PLACE and _apart(places[one], places[other])
        ]
        if not pairs:
            return places
        _, *pair = min(pairs)
        joined = sorted(box for number in pair for box in places[number])
        others = [place for number, place in enumerate(places) if number not in pair]
        places = sorted([*others, joined])


def _apart(one: _Place, other: _Place) -> bool:
    """Whether no reader drew in both places."""
    return not {reader for _, reader in one} & {reader for _, reader in other}


def _mean(place: _Place) -> Corners:
    corners: NDArray[np.float64] = np.array([box for box, _ in place], dtype=np.float64)
    return tuple(corners.mean(axis=0).tolist())
