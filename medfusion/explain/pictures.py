"""Images with something drawn over them.

Shapes: C channels, H height, W width, M boxes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

FOR, AGAINST = (232, 93, 4), (30, 110, 220)  # also told apart by most colour-blind readers
TRUTH = (30, 200, 160)
_SIDE = 256  # pixels of a drawn image's longer side, at least
_STRONGEST = 0.65  # opacity of the largest value


def grey(image_CHW: NDArray[Any]) -> Image.Image:
    """Return an image as a model sees it, from -1 (black) to 1 (white), large enough to look at."""
    levels = np.clip((np.asarray(image_CHW, dtype=np.float64) + 1) * 127.5, 0, 255)
    pixels = levels.round().astype(np.uint8)
    mode = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    picture = Image.fromarray(mode).convert("RGB")
    times = max(1, -(-_SIDE // max(picture.size)))
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, heat_HW: NDArray[Any], largest: float) -> Image.Image:
    """Lay a map over a picture: orange where it is positive, blue where it is negative.

    ``largest`` is the value that is drawn strongest; where the map is 0 the picture stays as is.
    """
    share = np.asarray(heat_HW, dtype=np.float32) / (largest or 1.0)
    field = Image.fromarray(np.clip(share, -1, 1))
    heat = np.asarray(field.resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    colour = np.where(heat > 0, np.array(FOR), np.array(AGAINST))
    opacity = _STRONGEST * np.abs(heat)
    mixed = np.asarray(picture) * (1 - opacity) + colour * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def with_boxes(
    picture: Image.Image,
    found: Sequence[tuple[Sequence[float], str]],
    drawn: Sequence[tuple[Sequence[float], str]],
) -> Image.Image:
    """Draw boxes, corners as shares of width and height, each with its text: truth is green."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    sides = np.tile(picture.size, 2)
    for boxes, colour in ((drawn, TRUTH), (found, FOR)):
        for corners, text in boxes:
            x0, y0, x1, y1 = (np.asarray(corners) * sides).tolist()
            draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=2)
            # what was found is named above its box, what was drawn below
            _name(draw, (x0, y0 - 12 if colour == FOR else y1 + 1), text, colour, picture.size)
    return picture


def _name(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    """Write a text on a dark ground, moved to where it is whole."""
    left, top, right, bottom = draw.textbbox((0, 0), text)
    x = min(max(at[0], 0), max(size[0] - right, 0))
    y = min(max(at[1], 0), max(size[1] - bottom, 0))
    draw.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=(0, 0, 0))
    draw.text((x, y), text, fill=colour)


def planes(volume: NDArray[Any], at: Sequence[float]) -> list[NDArray[Any]]:
    """Cut a volume [X, Y, Z] of axes right, front, up at shares of its sides: three images.

    Seen from below (front up, the patient's right on the left), from the front and from the right.
    """
    x, y, z = (
        min(int(share * side), side - 1) for share, side in zip(at, volume.shape, strict=True)
    )
    return [volume[::-1, ::-1, z].T, volume[::-1, y, ::-1].T, volume[x, :, ::-1].T]
