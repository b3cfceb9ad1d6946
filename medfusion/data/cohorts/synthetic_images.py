"""Radiographs of the synthetic cohort: a drawn chest, planted findings, and a scanner's look.

Coordinates run from -1 to 1 over the image, so that findings keep their place at any size.
Legend: N studies, H height = width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.synthetic_signal import IMAGE_FINDINGS

Floats = NDArray[np.floating[Any]]

_BATCH = 256  # studies drawn at once: a few MB


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """How a hospital's images look.

    Attributes
    ----------
    suffix, bits
        ``.png`` with 8 or 16 bits, ``.jpg`` with 8.
    sharpness
        Pixels per nominal pixel: images are stored at ``round(sharpness * size)``.
    blur
        Number of passes of a small blur.
    brightness, contrast, noise
        Added grey, factor on the grey around the middle, and standard deviation of the grain;
        1 is the full range.
    """

    suffix: str = ".png"
    bits: int = 8
    sharpness: float = 1.0
    blur: int = 0
    brightness: float = 0.0
    contrast: float = 1.0
    noise: float = 0.03


def draw_images(
    findings: NDArray[np.bool_], scanner: Scanner, size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8] | NDArray[np.uint16]]:
    """Yield the image [H, H] of each study; ``findings`` is bool [N, I]."""
    side = round(size * scanner.sharpness)
    for start in range(0, len(findings), _BATCH):
        chest = _chests(findings[start : start + _BATCH], side, rng)
        for _ in range(scanner.blur):
            chest = _blurred(chest)
        grain = rng.normal(0, scanner.noise, chest.shape).astype(np.float32)
        seen = 0.5 + scanner.contrast * (chest - 0.5) + scanner.brightness + grain
        top = 2**scanner.bits - 1
        pixels = np.round(np.clip(seen, 0, 1) * top)
        yield from pixels.astype(np.uint16 if scanner.bits == 16 else np.uint8)


def _chests(findings: NDArray[np.bool_], side: int, rng: np.random.Generator) -> Floats:
    """Draw chests with their findings as grey levels, float32 [N, H, H] of about 0 to 1."""
    has = dict(zip(IMAGE_FINDINGS, findings.T, strict=True))
    place = _Placer(len(findings), side, rng)
    left, right = place.ellipse(-0.45, -0.05, 0.30, 0.62), place.ellipse(0.45, -0.05, 0.30, 0.62)
    lungs = np.maximum(left, right)
    wide = np.where(has["enlarged_heart"], place.uniform(0.42, 0.50), place.uniform(0.22, 0.28))
    heart = place.ellipse(0.08, 0.35, wide, 0.34)
    ribs = np.sin(9 * np.pi * place.y + place.uniform(0, 6.3)[:, None, None]) * 0.03 * lungs
    grey = 0.55 - 0.28 * lungs + ribs
    grey += np.clip(0.80 - grey, 0, 1) * heart * 0.75
    grey += place.amplitude(has["opacity"], 0.32, 0.48) * _opacity(place, rng)
    grey += place.amplitude(has["fluid_level"], 0.26, 0.38) * _fluid(place, left, right, rng)
    grey += place.amplitude(has["diffuse_texture"], 0.12, 0.18) * _texture(place) * lungs
    grey += place.amplitude(has["catheter"], 0.32, 0.45) * _catheter(place)
    return np.asarray(grey, dtype=np.float32)


class _Placer:
    """Draws soft shapes [N, H, H] in a frame that is shifted and scaled a little per study."""

    def __init__(self, count: int, side: int, rng: np.random.Generator) -> None:
        self.count, self.rng = count, rng
        axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
        scale = self.uniform(0.95, 1.05)[:, None, None]
        self.x = (axis[None, None, :] - self.uniform(-0.06, 0.06)[:, None, None]) * scale
        self.y = (axis[None, :, None] - self.uniform(-0.06, 0.06)[:, None, None]) * scale
        self.edge = np.float32(2 / side)  # one pixel

    def uniform(self, low: float, high: float) -> Floats:
        return self.rng.uniform(low, high, self.count).astype(np.float32)

    def amplitude(self, present: NDArray[np.bool_], low: float, high: float) -> Floats:
        """Return strength [N, 1, 1] of a finding, 0 where it is absent."""
        return np.where(present, self.uniform(low, high), 0).astype(np.float32)[:, None, None]

    def ellipse(
        self, x: float | Floats, y: float | Floats, width: float | Floats, height: float | Floats
    ) -> Floats:
        """Return 1 inside an ellipse, 0 outside, with an edge of about two pixels."""
        x, y, width, height = (
            np.broadcast_to(np.asarray(value, dtype=np.float32), self.count)[:, None, None]
            for value in (x, y, width, height)
        )
        radius = np.sqrt(((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2)
        return self.above((1 - radius) * np.minimum(width, height))

    def above(self, distance: Floats) -> Floats:
        """Return 1 where a signed distance is positive, 0 where negative, softly."""
        return np.asarray(np.clip(0.5 + distance / (2 * self.edge), 0, 1))


def _opacity(place: _Placer, rng: np.random.Generator) -> Floats:
    """Return a round blob somewhere in one lung."""
    side = np.where(rng.random(place.count) < 0.5, -1, 1).astype(np.float32)
    radius = place.uniform(0.15, 0.21)
    return place.ellipse(
        side * place.uniform(0.40, 0.55), place.uniform(-0.45, 0.15), radius, radius
    )


def _fluid(place: _Placer, left: Floats, right: Floats, rng: np.random.Generator) -> Floats:
    """Return fluid that fills the lower part of one lung up to a slanting level."""
    is_left = (rng.random(place.count) < 0.5)[:, None, None]
    level = place.uniform(0.12, 0.28)[:, None, None]
    surface = place.y - level - 0.25 * (0.45 - np.abs(place.x))
    return place.above(surface) * np.where(is_left, left, right)


def _texture(place: _Placer) -> Floats:
    """Return a fine net, about a quarter of a lung's width between its strands."""
    phase = place.uniform(0, 6.3)[:, None, None]
    return np.sin(7.5 * np.pi * place.x + phase) * np.sin(7.5 * np.pi * place.y + phase) + 0.2


def _catheter(place: _Placer) -> Floats:
    """Return a thin line that comes from above, near the middle."""
    x = place.uniform(-0.12, 0.12)[:, None, None]
    end = place.uniform(-0.25, -0.05)[:, None, None]
    return place.above(0.045 - np.abs(place.x - x)) * place.above(end - place.y)


def _blurred(image: Floats) -> Floats:
    """Blur by 1-2-1 along both axes; edges repeat."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4)
