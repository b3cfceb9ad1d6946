import base64
import io

import numpy as np
import pytest
import torch
from explained import TASK, random_inputs, random_model
from PIL import Image

from medfusion.data.task import Task
from medfusion.explain import case_images
from medfusion.models.options import HyperFusionOptions

OPTIONS = HyperFusionOptions(width=8, stages=2, fusion="none")


def occluded(monkeypatch, space: tuple[int, ...], windows: tuple[int, ...]) -> list[np.ndarray]:
    """Return how orange the pictures are whose last window alone speaks for a label."""
    heat = torch.zeros(1, 2, *windows)
    heat[(..., *[-1] * len(space))] = 1.0
    monkeypatch.setattr(case_images, "occlusion", lambda *_, exclusive: heat * exclusive)
    task = Task.parse(
        {**TASK.to_json(), "image": {"dims": len(space), "size": list(space)}}, where="test"
    )
    inputs = {**random_inputs(1), "image": torch.zeros(1, 1, *space, dtype=torch.float64)}
    model, labels = random_model(OPTIONS, task), [(0, "icu")]
    ((_, figures),) = case_images.label_figures(
        model, inputs, None, labels, exclusive=True, images_at_once=8
    )
    found = []
    for figure in figures:
        if figure.title == "occlusion":
            file = io.BytesIO(base64.b64decode(figure.uri.split(",")[1]))
            pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
            found.append(pixels[..., 0] - pixels[..., 2])
    return found


def test_a_shorter_last_window_is_drawn_where_it_lies(monkeypatch):
    (orange,) = occluded(monkeypatch, (33, 33), (7, 7))  # the last window is of 3 pixels
    assert orange.shape == (264, 264)
    for side in np.nonzero(orange > 20):
        assert side.min() == pytest.approx(240, abs=4)
        assert side.max() == 263


def test_a_volume_is_cut_through_the_middle_of_the_window(monkeypatch):
    cuts, planes = [], case_images.planes
    monkeypatch.setattr(
        case_images, "planes", lambda volume, at: cuts.append(at) or planes(volume, at)
    )
    pictures = occluded(monkeypatch, (16, 20, 17), (4, 5, 5))
    assert len(pictures) == 3
    assert all((orange > 20).any() for orange in pictures)
    assert cuts[-1] == pytest.approx((14 / 16, 18 / 20, 16.5 / 17))
