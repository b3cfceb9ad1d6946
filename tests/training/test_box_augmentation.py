"""Boxes go where augmentation takes what they hold."""

import torch

from medfusion.training.augmentation import STAYS, augment

HEIGHT, WIDTH = 80, 120
COLUMNS = torch.zeros(1, dtype=torch.int64)


def ellipses(studies: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright ellipses, an upright one in each image, with their boxes [studies, 1, 4]."""
    x = torch.arange(WIDTH) + 0.5
    y = torch.arange(HEIGHT)[:, None] + 0.5
    centre = torch.tensor([WIDTH, HEIGHT]) * (0.35 + 0.3 * torch.rand(studies, 2, generator=draw))
    half = 8 + 12 * torch.rand(studies, 2, generator=draw)
    (cx, cy), (hx, hy) = (each.T[..., None, None] for each in (centre, half))
    inside = ((x - cx) / hx) ** 2 + ((y - cy) / hy) ** 2 <= 1
    image = torch.where(inside, 1.0, -1.0)[:, None]
    return image, torch.cat([centre - half, centre + half], dim=1)[:, None]


def inputs(image: torch.Tensor, boxes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "image": image,
        "image_present": torch.ones(len(image), dtype=torch.bool),
        "boxes": boxes,
        "box_classes": torch.ones(boxes.shape[:2], dtype=torch.int64),
    }


def test_a_box_still_holds_its_ellipse():
    draw = torch.Generator().manual_seed(0)
    image, boxes = ellipses(60, draw)
    changed = augment(inputs(image, boxes), COLUMNS, draw)
    assert (changed["boxes"] - boxes).abs().mean() > 1.0
    for shown, box in zip(changed["image"], changed["boxes"][:, 0], strict=True):
        rows, columns = torch.nonzero(shown[0] > shown.mean(), as_tuple=True)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (box - torch.stack(around)).abs().max() < 1.6  # pixels


def test_what_leaves_the_image_is_cut_or_gone():
    draw = torch.Generator().manual_seed(1)
    image = torch.zeros(400, 1, HEIGHT, WIDTH)
    boxes = torch.tensor([[[0.0, 20.0, 5.0, 40.0]]]).repeat(400, 1, 1)  # at the left edge
    changed = augment(inputs(image, boxes), COLUMNS, draw)
    found, there = changed["boxes"][:, 0], changed["box_classes"][:, 0] > 0
    assert 0 < there.sum() < 400
    assert not found[~there].any()
    assert (found[there, 0] >= 0).all()
    assert (found[there, 2] > found[there, 0]).all()
    widths = found[there, 2] - found[there, 0]
    assert widths.min() < 4.0
    assert widths.min() > 5.0 * STAYS * 0.8


def test_places_without_a_box_stay_empty():
    draw = torch.Generator().manual_seed(2)
    image, boxes = ellipses(5, draw)
    given = inputs(image, torch.cat([boxes, torch.zeros(5, 2, 4)], dim=1))
    given["box_classes"][:, 1:] = 0
    changed = augment(given, COLUMNS, draw)
    assert not changed["boxes"][:, 1:].any()
    assert changed["box_classes"].tolist() == [[1, 0, 0]] * 5
    assert given["boxes"][:, :1].equal(boxes)  # what was given is left as it was
