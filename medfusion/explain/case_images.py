"""The pictures of one study: what speaks for its likeliest labels, laid over its image.

Shapes: L labels, [...] two or three axes of space, D detections, M boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medfusion.evaluation.report.svg import picture_uri
from medfusion.explain.attention import LabelAttention, on_the_image
from medfusion.explain.grad_cam import grad_cam
from medfusion.explain.integrated_gradients import image_attributions
from medfusion.explain.occlusion import occlusion, on_pixels
from medfusion.explain.pictures import grey, overlay, planes, with_boxes
from medfusion.models.contract import Model
from medfusion.models.hyperfusion import HyperFusion
from medfusion.models.medfusion_net import MedFusionNet

BOX_SCORE = 0.25  # boxes below are not drawn, but the surest
_MOST_BOXES = 8


@dataclass(frozen=True)
class Figure:
    """A picture as a data URI, with a title below it and a text for those who cannot see it."""

    title: str
    uri: str
    alt: str


def label_figures(
    model: Model,
    inputs: dict[str, Tensor],
    attention: LabelAttention | None,
    labels: Sequence[tuple[int, str]],
    *,
    exclusive: bool,
    images_at_once: int,
) -> list[tuple[str, list[Figure]]]:
    """Return for each of ``labels`` (number, name) the figures of one study with an image.

    ``exclusive``: see `medfusion.explain.scores.ScoresOf`. No more than ``images_at_once`` images
    are read at once.
    """
    image = inputs["image"][0].cpu().numpy()
    numbers = [number for number, _ in labels]
    levels = grad_cam(model, inputs, numbers, exclusive=exclusive).items()
    drawn = [
        (f"Grad-CAM, {name}", place, x) for name, of in levels for place, x in enumerate(of[0])
    ]
    if attention is not None and isinstance(model, MedFusionNet):
        looks = _together(on_the_image(model, attention.weights["image"][:1]))[0, numbers]
        drawn += [("attention of the label", place, x) for place, x in enumerate(looks)]
    if isinstance(model, HyperFusion):
        added, change = image_attributions(
            model, inputs, numbers, exclusive=exclusive, images_at_once=images_at_once
        )
        due = change[0].tolist()
        drawn += [
            (_with_share("integrated gradients", float(x.sum()), due[place]), place, x)
            for place, x in enumerate(added[0])
        ]
    windows = occlusion(model, inputs, exclusive=exclusive)[0, numbers]
    hidden = on_pixels(windows, image.shape[1:])
    drawn += [("occlusion", place, x) for place, x in enumerate(hidden)]
    return [
        (
            name,
            [
                figure
                for title, of, x in drawn
                if of == place
                for figure in _figures(image, x.cpu().numpy(), title, name)
            ],
        )
        for place, (_, name) in enumerate(labels)
    ]


def _with_share(title: str, total: float, due: float) -> str:
    """Tell in a title how much of what a map is due to add up to it does."""
    return f"{title} ({total / due:.0%} of the change)" if due else title


def plain_figures(image: NDArray[Any]) -> list[Figure]:
    """Return the image [C, ...] as the model sees it; of a volume, cuts through its middle."""
    return [
        _figure(picture, "as the model sees it", "the study's image") for picture in _grey(image)
    ]


def box_figure(
    image: NDArray[Any],
    found_D6: NDArray[Any],
    drawn: tuple[NDArray[Any], NDArray[np.int64]] | None,
    names: Sequence[str],
) -> Figure:
    """Return the image with what was found, with scores, and what was drawn, if that is known.

    Parameters
    ----------
    found_D6
        What the detector returns of the study, the surest first.
    drawn
        Corners [M, 4] as shares of the sides, and classes [M], 0 where there is no box.
    """
    height, width = image.shape[1:]
    sides = np.array([width, height, width, height])
    some = [row for row in found_D6 if row[5] > 0]
    sure = [row for row in some if row[4] >= BOX_SCORE][:_MOST_BOXES] or some[:1]
    found = [(row[:4] / sides, f"{names[int(row[5]) - 1]} {row[4]:.2f}") for row in sure]
    rows = zip(*drawn, strict=True) if drawn else ()
    truth = [(box, names[one - 1]) for box, one in rows if one > 0]
    picture = with_boxes(grey(image), found, truth)
    said = ", ".join(text for _, text in found) or "nothing"
    known = f"; drawn by a reader: {', '.join(name for _, name in truth)}" if truth else ""
    return _figure(picture, "found (orange) and drawn (green)", f"found: {said}{known}")


def _together(grids: Sequence[Tensor]) -> Tensor:
    """Add maps [B, L, H, W] of several grids up on the finest, each cell as dense as it was."""
    finest = max((x.shape[2:] for x in grids), key=lambda size: size.numel())
    stretched = [
        functional.interpolate(x, finest) * (x.shape[2:].numel() / finest.numel()) for x in grids
    ]
    return torch.stack(stretched).sum(dim=0)


def _grey(image: NDArray[Any], at: Sequence[float] = (0.5, 0.5, 0.5)) -> list[Image.Image]:
    cuts = [image] if image.ndim == 3 else [cut[None] for cut in planes(image[0], at)]
    return [grey(cut) for cut in cuts]


def _figures(image: NDArray[Any], heat: NDArray[Any], title: str, label: str) -> list[Figure]:
    """Lay a map over the image; of a volume, over cuts through the map's largest value."""
    largest = float(np.abs(heat).max())
    alt = f"{title} for {label}"
    if heat.ndim == 2:
        return [_figure(overlay(_grey(image)[0], heat, largest), title, alt)]
    place = np.median(np.argwhere(np.abs(heat) == largest), axis=0)  # the middle of a window
    at = [(one + 0.5) / side for one, side in zip(place, heat.shape, strict=True)]
    pictures = zip(_grey(image, at), planes(heat, at), strict=True)
    return [_figure(overlay(picture, cut, largest), title, alt) for picture, cut in pictures]


def _figure(picture: Image.Image, title: str, alt: str) -> Figure:
    return Figure(title, picture_uri(picture.quantize(128)), alt)
