"""Light augmentation: in each step a study looks a little different, as if taken another day.

===========  ==============================================================================
image        shifted, turned and scaled by one affine map; contrast and brightness vary. A
             volume turns about each of its axes. Never mirrored: on which side a finding
             lies is part of it.
boxes        go with the image; one that leaves it for the most part is no longer there.
features     a known one is hidden now and then, exactly as a missing one would look.
note         a token other than its first is hidden now and then (id 0, which encoders and
             attention mask; states that an encoder computed in advance stay as they were,
             so a pooled one keeps the word).
===========  ==============================================================================

Each study is changed by draws of its own. What is missing stays missing, and what is there
stays there. Under a plan the draws belong to the private stream: a step sees one version of a
patient's study, so the clipped gradient is still the patient's whole contribution.

Shapes: B batch, C channels, H height, W width, K model-input columns, F features, V values of
a column (3 + L), T text tokens, M boxes of a study.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medfusion.data.encode import MISSING, SELECTED
from medfusion.models.contract import BOX_CLASSES, BOXES
from medfusion.models.fusion import hide_columns

SHIFT = 0.06  # of height and width, either way
TURN = math.radians(6.0)
SCALE = 0.06
CONTRAST = 0.15
BRIGHTNESS = 0.1  # of pixels in [-1, 1]
STAYS = 0.25  # of a box's area: with less of it in the image, it is gone
HIDDEN = 0.08  # of features, and of tokens
_IMAGE_DRAWS, _VOLUME_DRAWS = 6, 9


def augment(
    inputs: dict[str, Tensor], column_features: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return inputs in which each study is changed a little.

    Parameters
    ----------
    inputs
        The model's inputs (see `medfusion.models.contract`); left as they are.
    column_features
        Int64 [K]: the number of the feature that a column belongs to. The columns of a
        categorical feature are known or missing together.
    generator
        A CPU generator, so that every device sees the same draws. Studies are drawn one after
        another, so a batch cut into pieces draws the same.
    """
    features = int(column_features.max()) + 1 if "tabular" in inputs else 0
    tokens = inputs["tokens"].shape[1] if "tokens" in inputs else 0
    studies = len(next(iter(inputs.values())))
    solid = "image" in inputs and inputs["image"].ndim == 5
    image_draws = _VOLUME_DRAWS if solid else _IMAGE_DRAWS
    draws = torch.rand(studies, image_draws + features + tokens, generator=generator)
    draws = draws.to(next(iter(inputs.values())).device)
    of_image, of_features, of_tokens = torch.split(draws, [image_draws, features, tokens], dim=1)
    changed = dict(inputs)
    if "image" in inputs:
        change = _change_volume if solid else _change_image
        image = change(inputs["image"], 2.0 * of_image - 1.0)
        if BOXES in inputs:
            changed |= _move_boxes(inputs, 2.0 * of_image - 1.0)
        absent = ~inputs["image_present"].view(-1, *[1] * (image.ndim - 1))
        changed["image"] = image.masked_fill(absent, 0.0)
        changed.pop("image_features", None)  # of the image as it was
    if "tabular" in inputs:
        drawn = of_features[:, column_features.to(draws.device)] < HIDDEN
        changed["tabular"] = _hide_features(inputs["tabular"], drawn)
    if "tokens" in inputs:
        drawn = of_tokens < HIDDEN
        first = torch.arange(tokens, device=draws.device) == 0
        changed["tokens"] = inputs["tokens"].masked_fill(drawn & ~first, 0)
    return changed


def _change_image(image: Tensor, draws: Tensor) -> Tensor:
    """Move and tint images in [-1, 1] by six draws each, [B, 6] in [-1, 1]."""
    height, width = image.shape[2:]
    angle, size, down, right, contrast, brightness = draws[:, :, None, None].unbind(dim=1)
    along_x = torch.cos(TURN * angle) * (1.0 + SCALE * size)
    along_y = torch.sin(TURN * angle) * (1.0 + SCALE * size)
    x = _centres(width, draws)[None]
    y = _centres(height, draws)[:, None]
    # Turned in pixels, not in shares of the sides: in an oblong image that would be a shear.
    from_x = along_x * x - along_y * y * (height / width) + 2.0 * SHIFT * right
    from_y = along_y * x * (width / height) + along_x * y + 2.0 * SHIFT * down
    moved = grid_sample(
        image,
        torch.stack([from_x, from_y], dim=-1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    gain, offset = 1.0 + CONTRAST * contrast, BRIGHTNESS * brightness
    return (moved * gain[:, None] + offset[:, None]).clamp(-1.0, 1.0)


def _change_volume(volume: Tensor, draws: Tensor) -> Tensor:
    """Move and tint volumes [B, C, X, Y, Z] in [-1, 1] by nine draws each, in [-1, 1]."""
    sides = torch.tensor(volume.shape[2:], dtype=volume.dtype, device=volume.device)
    turns, size, shifts, contrast, brightness = torch.split(draws, [3, 1, 3, 1, 1], dim=1)
    turn = _turn(TURN * turns) * (1.0 + SCALE * size)[:, :, None]
    # Turned in voxels, then as shares of the sides; grid_sample counts axes from the last.
    turn = (turn * sides / sides[:, None]).flip(1, 2)
    affine = torch.cat([turn, 2.0 * SHIFT * shifts.flip(1)[:, :, None]], dim=2)
    grid = affine_grid(affine, list(volume.shape), align_corners=False)
    moved = grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain, offset = 1.0 + CONTRAST * contrast, BRIGHTNESS * brightness
    tinted = moved * gain[:, :, None, None, None] + offset[:, :, None, None, None]
    return tinted.clamp(-1.0, 1.0)


def _turn(angles: Tensor) -> Tensor:
    """Return rotations [B, 3, 3]: about the first axis, then the second, then the third."""
    found = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(len(angles), 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        cos, sin = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        about = torch.eye(3, dtype=angles.dtype, device=angles.device).repeat(len(angles), 1, 1)
        about[:, i, i], about[:, i, j], about[:, j, i], about[:, j, j] = cos, -sin, sin, cos
        found = about @ found
    return found


def _move_boxes(inputs: dict[str, Tensor], draws: Tensor) -> dict[str, Tensor]:
    """Return the boxes as `_change_image` moves the image, cut to it.

    A turned box becomes the one around the turned ellipse that it held: the one around its
    turned corners would be too large for most things (Kalra et al. 2021, arXiv 2109.13488).
    """
    height, width = inputs["image"].shape[2:]
    corners, classes = inputs[BOXES], inputs[BOX_CLASSES]
    angle, size, down, right = draws[:, :4, None].unbind(dim=1)
    scale = 1.0 + SCALE * size
    cos, sin = torch.cos(TURN * angle), torch.sin(TURN * angle)
    centre, half = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] / 2
    half = half - corners[..., :2] / 2
    # The image looks up where each of its pixels comes from; boxes go the other way.
    x = centre[..., 0] - width / 2 - SHIFT * width * right
    y = centre[..., 1] - height / 2 - SHIFT * height * down
    x, y = (cos * x + sin * y) / scale + width / 2, (cos * y - sin * x) / scale + height / 2
    across = torch.hypot(half[..., 0] * cos, half[..., 1] * sin) / scale
    upright = torch.hypot(half[..., 0] * sin, half[..., 1] * cos) / scale
    whole = torch.stack([x - across, y - upright, x + across, y + upright], dim=-1)
    most = torch.tensor([width, height, width, height], device=whole.device)
    within = torch.minimum(whole.clamp(min=0.0), most)
    seen = _area(within) >= STAYS * _area(whole)
    stays = (classes > 0) & seen & (within[..., 2:] > within[..., :2]).all(dim=-1)
    return {BOXES: within * stays[..., None], BOX_CLASSES: classes * stays}


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _centres(count: int, like: Tensor) -> Tensor:
    """Where the centres of pixels lie on a side from -1 to 1."""
    return (2.0 * torch.arange(count, device=like.device) + 1.0) / count - 1.0


def _hide_features(tabular: Tensor, drawn: Tensor) -> Tensor:
    """Let the columns drawn look missing, unless a study would lose all that it has."""
    known = (tabular[..., SELECTED] > 0) & (tabular[..., MISSING] == 0)
    keeps_one = (known & ~drawn).any(dim=1, keepdim=True)
    return hide_columns(tabular, drawn & keeps_one)
