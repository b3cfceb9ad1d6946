"""Means and deviations of a volume's cells, and models that are linear in them."""

import numpy as np
import pytest
import torch
from volumes import volume_inputs, volume_task

from medfusion.models.blocks.volume_cells import VolumeCells
from medfusion.models.options import HyperFusionOptions, LogisticOptions
from medfusion.models.registry import build_model, fixed_image_features


def by_loops(volume: np.ndarray, cell: int) -> np.ndarray:
    """Features of one volume [C, X, Y, Z], cell by cell."""
    means, deviations = [], []
    for channel in volume:
        sides = [range(0, side, cell) for side in channel.shape]
        for x in sides[0]:
            for y in sides[1]:
                for z in sides[2]:
                    voxels = channel[x : x + cell, y : y + cell, z : z + cell]
                    means.append(voxels.mean())
                    deviations.append(voxels.std())
    return np.concatenate([(np.array(v) - np.mean(v)) / np.std(v) for v in (means, deviations)])


@pytest.mark.parametrize("sides", [(6, 8, 4), (5, 7, 3)])
def test_features_are_those_of_a_plain_loop(sides):
    volume = np.random.default_rng(0).uniform(-1, 1, (2, 2, *sides)).astype(np.float32)
    cells = VolumeCells(2, sides)
    found = cells(torch.from_numpy(volume)).numpy()
    assert found.shape == (2, cells.count)
    for one, expected in zip(found, volume, strict=True):
        np.testing.assert_allclose(one, by_loops(expected, 2), atol=2e-3)


def test_large_volumes_have_larger_cells():
    assert VolumeCells(1, (40, 48, 40)).count == 2 * 20 * 24 * 20
    assert VolumeCells(1, (64, 96, 64)).count == 2 * 16 * 24 * 16


def test_a_level_volume_and_one_of_half_the_size_have_features():
    cells = VolumeCells(1, (8, 8, 8))
    assert torch.equal(cells(torch.zeros(1, 1, 8, 8, 8)), torch.zeros(1, cells.count))
    volume = torch.rand(1, 1, 8, 8, 8)
    halved = cells(torch.nn.functional.avg_pool3d(volume, 2))
    torch.testing.assert_close(halved[:, :64], cells(volume)[:, :64], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        HyperFusionOptions(fusion="film", width=8, stages=2, linear_path=True),
        LogisticOptions(modalities=("image",)),
    ],
)
def test_a_linear_path_adds_what_is_linear_in_them(options):
    model, inputs = build_model(options, volume_task(), seed=0), volume_inputs(3)
    inputs = {n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}
    inputs["image_present"][1] = False
    before = model(inputs)
    with torch.no_grad():
        weight = model.linear.image.weight.normal_(generator=torch.Generator().manual_seed(0))
    features = fixed_image_features(model)(inputs["image"]).numpy()
    scaled = 6.0 * features / np.linalg.norm(features, axis=1, keepdims=True)
    scaled[1] = 0.0
    absent = np.array([[0.0], [1.0], [0.0]])
    added = np.concatenate([scaled, absent], axis=1) @ weight.detach().numpy().T
    np.testing.assert_allclose((model(inputs) - before).detach().numpy(), added, atol=2e-3)


def test_no_linear_path_where_the_image_is_not_read():
    options = HyperFusionOptions(fusion="tabular", linear_path=True)
    assert build_model(options, volume_task(), seed=0).linear is None
    assert fixed_image_features(build_model(HyperFusionOptions(), volume_task(), seed=0)) is None
