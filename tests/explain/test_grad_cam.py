import pytest
import torch
from explained import TASK, random_inputs, random_model

from medfusion.data.task import Task
from medfusion.explain.grad_cam import grad_cam, map_layers
from medfusion.models.options import HyperFusionOptions, LogisticOptions, MedFusionNetOptions

VOLUMES = Task.parse(
    {
        **TASK.to_json(),
        "image": {"dims": 3, "size": [16, 20, 24]},
    },
    where="test",
)
CASES = {
    "medfusion_net": MedFusionNetOptions(),
    "last_stage_only": MedFusionNetOptions(fpn=False),
    "hyperfusion": HyperFusionOptions(width=8, stages=2),
}


def by_hand(model, layer, inputs, label):
    """Equations 1 and 2 of the paper."""
    kept = []
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    score = model({**inputs, "image": inputs["image"].clone().requires_grad_()})[:, label]
    hook.remove()
    (slope,) = torch.autograd.grad(score.sum(), kept[0])
    space = tuple(range(2, slope.ndim))
    weight = slope.mean(dim=space, keepdim=True)
    return torch.relu((weight * kept[0]).sum(dim=1)).detach()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_maps_are_those_of_the_equations(options):
    model, inputs = random_model(options), random_inputs()
    maps = grad_cam(model, inputs, (0, 1))
    assert maps.keys() == map_layers(model).keys() != set()
    for name, layer in map_layers(model).items():
        for label in range(2):
            expected = by_hand(model, layer, inputs, label)
            torch.testing.assert_close(maps[name][:, label], expected)
    assert max(x.max() for x in maps.values()) > 0


def test_a_pyramid_gives_a_map_of_each_level():
    sizes = [
        x.shape[2:] for x in grad_cam(random_model(MedFusionNetOptions()), random_inputs()).values()
    ]
    assert sizes == [(8, 8), (4, 4), (2, 2)]


def test_of_a_volume_the_map_has_three_axes():
    model = random_model(HyperFusionOptions(width=8, stages=2, fusion="none"), VOLUMES)
    inputs = random_inputs()
    draw = torch.Generator().manual_seed(0)
    inputs["image"] = torch.randn(3, 1, 16, 20, 24, generator=draw, dtype=torch.float64)
    (found,) = grad_cam(model, inputs, (0, 1)).values()
    assert found.shape == (3, 2, 4, 5, 6)
    torch.testing.assert_close(found[:, 1], by_hand(model, model.image, inputs, 1))


def test_a_model_without_maps_has_none():
    assert (
        grad_cam(random_model(LogisticOptions(modalities=("image",))), random_inputs(), (0,)) == {}
    )
    assert map_layers(random_model(MedFusionNetOptions(modalities=("tabular",)))) == {}


def test_parameters_get_no_gradients_and_the_mode_stays():
    model = random_model(MedFusionNetOptions()).train()
    grad_cam(model, random_inputs(), (0,))
    assert model.training
    assert all(value.grad is None for value in model.parameters())
