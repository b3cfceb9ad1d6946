"""The fusions on volumes: what they share, where they start, what only some can learn."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from volumes import volume_inputs, volume_task

from medfusion.data.task import ImageSpec, Task
from medfusion.errors import ConfigError
from medfusion.models.blocks.inside import Inside
from medfusion.models.contract import trainable_state
from medfusion.models.options import Fusion, HyperFusionOptions, MedFusionNetOptions
from medfusion.models.registry import build_model, modalities_of
from medfusion.privacy.book_keeping.engine import BookKeeping

TASK = volume_task()
FUSIONS = get_args(Fusion)
SMALL = {"width": 8, "stages": 2}
B = 5


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(fusion: str, task: Task = TASK, **options):
    return build_model(
        HyperFusionOptions(fusion=fusion, **(SMALL | options)), task, seed=0
    ).double()


def shaken(model):
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(0.05 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    ("fusion", "options"),
    [
        *((name, {}) for name in FUSIONS),
        ("film", {"linear_path": True}),
        ("hyperfusion", {"backbone": "vgg"}),
    ],
)
def test_book_keeping_on_volumes_is_a_loop_over_samples(fusion, options):
    model, inputs = shaken(build(fusion, **options)), volume_inputs(B)
    inputs["image_present"][1] = False
    assert BookKeeping.knows(model)
    found = BookKeeping(model).gradients(lambda: model(inputs).square().sum(dim=1)).by_sample
    assert found.keys() == trainable_state(model).keys()
    for sample in range(B):
        model.zero_grad(set_to_none=True)
        one = {name: value[sample, None] for name, value in inputs.items()}
        model(one).square().sum().backward()
        for name, parameter in trainable_state(model).items():
            torch.testing.assert_close(
                found[name][sample], parameter.grad, rtol=1e-8, atol=1e-11, msg=name
            )


@pytest.mark.parametrize("backbone", ["resnet", "vgg"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_volumes_output_does_not_hang_on_the_others(fusion, backbone):
    model, inputs = shaken(build(fusion, backbone=backbone)), volume_inputs(B)
    before, other = model(inputs), volume_inputs(B, seed=1)
    for sample in range(B):
        changed = {name: value.clone() for name, value in other.items()}
        for name, value in inputs.items():
            changed[name][sample] = value[sample]
        after = model(changed)
        torch.testing.assert_close(after[sample], before[sample], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(after[(sample + 1) % B], before[(sample + 1) % B])


@pytest.mark.parametrize("generated", [None, ("image.stages.0.conv1", "head1", "head2")])
def test_with_its_generators_at_zero_hyperfusion_is_the_image_only_network(generated):
    model, plain = build("hyperfusion", generated=generated), shaken(build("none"))
    state = model.state_dict()
    for name in state:
        base = name.replace(".base.", ".")
        state[name] = plain.state_dict().get(base, torch.zeros_like(state[name]))
    model.load_state_dict(state)
    inputs = volume_inputs(B)
    torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-12, atol=1e-12)
    made = [name for name in state if "generator" in name]
    assert len(made) == len(generated or "1")


@pytest.mark.parametrize("fusion", ["film", "daft"])
def test_modulation_begins_as_the_image_only_network(fusion):
    inputs = volume_inputs(B)
    plain = build("none")
    model = build(fusion)
    assert torch.equal(model(inputs), plain(inputs))
    assert not torch.allclose(shaken(model)(inputs), plain(inputs))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_has_the_same_encoder_and_head_to_begin_with(fusion):
    plain = build("none").state_dict()
    state = build(fusion).state_dict()
    shared = {name for name in plain if name.startswith("image.")} if fusion != "tabular" else set()
    made = {name.replace(".base.", ".") for name in state if ".base." in name}
    for name in shared - made:
        assert torch.equal(state[name], plain[name]), name


@pytest.mark.parametrize("absent", [False, True])
def test_a_vggs_head_is_four_layers_over_all_places_of_the_last_map(absent):
    model, inputs = shaken(build("none", backbone="vgg")), volume_inputs(B)
    inputs["image_present"][:] = not absent
    places_BCN = model.image(inputs["image"], Inside()).flatten(2)
    found = places_BCN.permute(0, 2, 1).flatten(1).detach().numpy()
    if absent:
        found = np.tile(model.absent.table.weight.detach().numpy(), (B, 1))
    layers = [getattr(model, f"head{number}") for number in (1, 2, 3, 4)]
    assert [layer.out_features for layer in layers] == [16, 32, 64, 1]
    for layer in layers:
        read = found if layer is layers[0] else np.maximum(found, 0)
        found = read @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(model(inputs).detach().numpy(), found, rtol=1e-10)


@pytest.mark.parametrize("backbone", ["resnet", "vgg"])
def test_what_attention_tells_is_added_to_each_place_that_the_head_reads(backbone):
    model, plain = (shaken(build(f, backbone=backbone)) for f in ("cross_attention", "none"))
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    inputs = volume_inputs(B)
    places_BNC = plain.image(inputs["image"], Inside()).flatten(2).transpose(1, 2)
    told_B1C = model.attention(model.query(inputs["tabular"]).unsqueeze(1), places_BNC)
    plain.image.register_forward_hook(
        lambda _part, _inputs, maps: (
            maps + told_B1C.transpose(1, 2).reshape(*maps.shape[:2], 1, 1, 1)
        )
    )
    torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-10, atol=1e-10)


def test_what_a_model_reads_follows_from_its_fusion():
    read = {name: modalities_of(HyperFusionOptions(fusion=name), TASK) for name in FUSIONS}
    assert read.pop("none") == ("image",)
    assert read.pop("tabular") == ("tabular",)
    assert set(read.values()) == {("image", "tabular")}


def test_wrong_layers_and_models_for_volumes_are_refused():
    with pytest.raises(ConfigError, match=r"no layer 'image.stages.7.down'.*head1"):
        build("hyperfusion", generated=("image.stages.7.down",))
    with pytest.raises(ConfigError, match="reads images of two dimensions"):
        build_model(MedFusionNetOptions(), TASK, seed=0)
    build_model(MedFusionNetOptions(modalities=("tabular",)), TASK, seed=0)


def flipping(
    count: int, seed: int, sides: tuple[int, ...]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Images or volumes with a bright or a dark block; what it means hangs on the sex."""
    draw = torch.Generator().manual_seed(seed)
    bright = torch.rand(count, generator=draw) < 0.5
    male = torch.rand(count, generator=draw) < 0.5
    image = 0.3 * torch.randn(count, 1, *sides, generator=draw)
    block = (slice(None), slice(None), *(slice(side // 4, 3 * side // 4) for side in sides))
    image[block] += (2.0 * bright - 1.0).reshape(-1, 1, *[1] * len(sides))
    tabular = torch.zeros(count, 3, 4)
    tabular[..., 2] = 1.0
    tabular[:, 0, 0], tabular[:, 1, 0] = (~male).float(), male.float()
    inputs = {"image": image, "image_present": torch.ones(count) > 0, "tabular": tabular}
    return inputs, (bright ^ male).float().unsqueeze(1)


def accuracy(fusion: str, sides: tuple[int, ...]) -> float:
    spec = ImageSpec(dims=len(sides), size=(16,) * len(sides))  # the encoder takes any size
    task = volume_task("multilabel").model_copy(update={"image": spec})
    model = build(fusion, task).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, labels = flipping(256, 0, sides)
    for step in range(200):
        rows = torch.arange(32) + 32 * (step % 8)
        batch = {name: value[rows] for name, value in inputs.items()}
        binary_cross_entropy_with_logits(model(batch), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    test, truth = flipping(256, 1, sides)
    with torch.no_grad():
        return float(((model.eval()(test) > 0) == (truth > 0)).float().mean())


in_both = pytest.mark.parametrize("sides", [(16, 16), (8, 8, 8)], ids=["image", "volume"])


@in_both
@pytest.mark.parametrize("fusion", ["film", "hyperfusion"])
def test_a_sign_that_flips_with_a_tabular_value_is_learned(fusion, sides):
    assert accuracy(fusion, sides) > 0.9


@in_both
def test_concat_cannot_flip_a_sign(sides):
    """Its output is a sum of a function of the image and one of the columns."""
    assert accuracy("concat", sides) < 0.7
