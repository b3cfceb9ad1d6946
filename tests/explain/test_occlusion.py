import pytest
import torch
from captum.attr import Occlusion
from explained import TASK, random_inputs, random_model

from medfusion.data.task import Task
from medfusion.explain.occlusion import occlusion, on_pixels
from medfusion.models.options import HyperFusionOptions, LogisticOptions

VOLUMES = Task.parse(
    {**TASK.to_json(), "image": {"dims": 3, "size": [16, 20, 17]}},
    where="test",
)


def of_size(*space: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, *space, generator=draw, dtype=torch.float64)
    return {**random_inputs(2), "image": image}


@pytest.mark.parametrize("space", [(32, 32), (16, 20, 17)])
def test_windows_are_those_of_captum(space):
    options = HyperFusionOptions(width=8, stages=2, fusion="none")
    model = random_model(options, TASK if len(space) == 2 else VOLUMES)
    inputs = of_size(*space)
    found = occlusion(model, inputs)
    image = inputs["image"]
    window = tuple(-(-side // (8 if len(space) == 2 else 5)) for side in space)
    mean = image.mean(dim=tuple(range(2, image.ndim)), keepdim=True).expand_as(image)
    expected = Occlusion(lambda x: model({**inputs, "image": x})).attribute(
        image, (1, *window), strides=(1, *window), baselines=mean, target=1
    )
    first = tuple(slice(None, None, side) for side in window)
    expected = expected[(slice(None), 0, *first)].double()
    torch.testing.assert_close(found[:, 1], expected, rtol=1e-4, atol=1e-6)
    assert found.abs().max() > 0


def test_features_of_the_image_computed_in_advance_are_computed_anew():
    model = random_model(LogisticOptions(modalities=("image",)))
    inputs = random_inputs(2)
    ahead = {**inputs, "image_features": model.linear.features(inputs["image"])}
    found = occlusion(model, ahead)
    assert found.abs().max() > 0
    assert torch.equal(found, occlusion(model, inputs))


def test_every_pixel_has_the_value_of_its_window():
    flat = on_pixels(torch.arange(2 * 7 * 7.0).reshape(2, 7, 7), (33, 35))  # 5 to a window
    assert flat.shape == (2, 33, 35)
    lengths = [(flat[1, :, 0] == 49 + 7 * n).sum().item() for n in range(7)]
    assert lengths == [5, 5, 5, 5, 5, 5, 3]
    assert flat[0, 0].tolist() == [n // 5 for n in range(35)]
    assert on_pixels(torch.rand(4, 5, 5), (16, 20, 17)).shape == (16, 20, 17)
