"""Generated layers against loops of plain ones, and what they begin with."""

from functools import partial
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn import functional
from volumes import volume_inputs, volume_task

from medfusion.errors import ConfigError
from medfusion.models.blocks.encoders import Encoder
from medfusion.models.blocks.generated import (
    Embedding,
    Generated,
    can_be_generated,
    convolve_each,
    generate,
)
from medfusion.models.blocks.inside import Inside
from medfusion.models.options import HyperFusionOptions, MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.models.spec import InputSpec

B, WIDTH = 5, 8


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_of_each_sample_are_those_of_a_loop(dims, side, stride):
    convolve = functional.conv3d if dims == 3 else functional.conv2d
    x = drawn(B, 4, *(7, 6, 8)[:dims])
    weight = drawn(B, 6, 4, *[side] * dims, seed=1)
    padding = side // 2
    found = convolve_each(x, weight, (stride,) * dims, (padding,) * dims)
    expected = torch.cat(
        [convolve(x[i, None], weight[i], stride=stride, padding=padding) for i in range(B)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    "base",
    [
        lambda: nn.Conv3d(3, 6, 3, stride=2, padding=1),
        lambda: nn.Conv3d(3, 6, 1, stride=2, bias=False),
        lambda: nn.Linear(7, 6),
    ],
    ids=["conv", "pointwise", "linear"],
)
def test_a_generated_layer_is_the_plain_one_with_each_samples_weights(base, rank):
    layer = Generated(base(), WIDTH, rank).double()
    nn.init.normal_(layer.bias.weight)
    linear = isinstance(layer.base, nn.Linear)
    x = drawn(B, 7) if linear else drawn(B, 3, 6, 7, 8)
    e = drawn(B, WIDTH, seed=2)
    rows = []
    for i in range(B):
        made = layer.generator.weight @ e[i]
        if rank is not None:
            left = (layer.left.weight @ e[i]).reshape(6, rank)
            made = left @ made.reshape(rank, -1)
        weight = layer.base.weight + made.reshape(layer.base.weight.shape)
        bias = layer.bias.weight @ e[i] + (0.0 if layer.base.bias is None else layer.base.bias)
        if linear:
            rows.append(functional.linear(x[i, None], weight, bias))
        else:
            stride, padding = layer.base.stride, layer.base.padding
            rows.append(functional.conv3d(x[i, None], weight, bias, stride, padding))
    torch.testing.assert_close(layer(x, e), torch.cat(rows), rtol=1e-12, atol=1e-12)


def of_its_own_sample(apply) -> bool:
    """Whether output i stays when the input of every other sample changes."""
    x, weight = drawn(B, 4, 5, 5, 5), drawn(B, 6, 4, 3, 3, 3, seed=1)
    before = apply(x, weight)
    for sample in range(B):
        other = torch.arange(B) != sample
        changed_x, changed_weight = x.clone(), weight.clone()
        changed_x[other] += 1.0
        changed_weight[other] *= -0.5
        after = apply(changed_x, changed_weight)
        if not torch.allclose(after[sample], before[sample]):
            return False
    return True


def as_published(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The formula of HyperFusion's published code: out[i + 1] = conv3d(x[i], w[i + 1])."""
    out = [functional.conv3d(x[:1], weight[0], padding=1)]
    out += [functional.conv3d(x[i, None], weight[i + 1], padding=1) for i in range(len(x) - 1)]
    return torch.cat(out)


def test_a_samples_output_is_its_own_which_the_published_formulas_is_not():
    ours = lambda x, weight: convolve_each(x, weight, (1, 1, 1), (1, 1, 1))  # noqa: E731
    assert of_its_own_sample(ours)
    assert not of_its_own_sample(as_published)


def embedding(batch: int) -> torch.Tensor:
    spec = InputSpec(columns=4, labels=1, image_channels=1, image_size=(16, 16, 16), max_tokens=0)
    torch.manual_seed(0)
    tabular = torch.rand(batch, 4, spec.column_values)
    tabular[..., 2] = 1.0
    return Embedding(spec, WIDTH)(tabular).detach()


def test_the_embedding_has_mean_square_one_whatever_the_tabular_data():
    assert torch.allclose(embedding(50).square().mean(dim=1), torch.ones(50), atol=1e-3)


@pytest.mark.parametrize("rank", [None, 4])
def test_the_variance_of_activations_stays_over_six_generated_layers(rank):
    """In the mean over draws of the weights: each draw wanders."""
    e = embedding(64)
    torch.manual_seed(1)
    variances = torch.zeros(6)
    for _ in range(20):
        x = torch.randn(64, 192)
        for depth in range(6):
            base = nn.Linear(192, 192, bias=False)
            nn.init.kaiming_uniform_(base.weight, nonlinearity="relu")
            with torch.no_grad():
                x = Generated(base, WIDTH, rank)(torch.relu(x), e)
            variances[depth] += x.square().mean() / 20
    assert variances.tolist() == pytest.approx([1.0] * 6, rel=0.2)


def note(total: torch.Tensor, stage: nn.Module, given: object, out: torch.Tensor) -> None:
    total.add_(out.square().mean())


def test_an_encoder_of_generated_layers_has_the_variances_of_a_plain_one():
    """The last map's stages, before the last norm, in the mean over draws."""
    e, x = embedding(8), torch.randn(8, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    found = torch.zeros(2, 3)
    for seed in range(6):
        for row, generated in enumerate((False, True)):
            torch.manual_seed(seed)
            encoder = Encoder("resnet", 3, 1, width=8, stages=3)
            if generated:
                names = [f"stages.{k}.{name}" for k in range(3) for name in ("conv1", "conv2")]
                generate(encoder, names, embedding=WIDTH, rank=None)
            for number, stage in enumerate(encoder.stages):
                stage.register_forward_hook(partial(note, found[row, number]))
            with torch.no_grad():
                encoder(x, Inside(embedding=e))
    assert (found[1] / found[0]).tolist() == pytest.approx([1.0] * 3, rel=0.2)


def test_the_published_initial_variance_which_takes_that_of_the_input_does_not_hold_it():
    """Raw columns in [0, 1] have variance 1/12; weights sized by it are 12 times too large."""
    layer = Generated(nn.Linear(256, 256), WIDTH)
    e, x = embedding(64), torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = layer(torch.relu(x), e) - layer.base(torch.relu(x))
        assert float(made.square().mean()) == pytest.approx(0.5, rel=0.2)
        layer.generator.weight.div_(sqrt(1 / 12))
        wrong = layer(torch.relu(x), e) - layer.base(torch.relu(x))
    assert float(wrong.square().mean()) > 5.0


def small(**options: object) -> HyperFusionOptions:
    return HyperFusionOptions.parse({"width": 8, "stages": 2, **options}, where="test")


@pytest.mark.parametrize("linear_path", [False, True])
@pytest.mark.parametrize("backbone", ["resnet", "vgg"])
def test_whatever_layer_is_offered_may_be_generated(backbone, linear_path):
    chosen = {"backbone": backbone, "linear_path": linear_path}
    plain = build_model(small(fusion="none", **chosen), volume_task(), seed=0)
    names = list(can_be_generated(plain))
    assert {"image.stages.1.conv2", "head1", "head2"} <= set(names)
    with pytest.raises(ConfigError, match=f"expected some of {', '.join(names)}$"):
        build_model(small(generated=["head"], **chosen), volume_task(), seed=0)
    model = build_model(small(generated=names, **chosen), volume_task(), seed=0)
    inputs = {
        name: value.float() if value.is_floating_point() else value
        for name, value in volume_inputs(3).items()
    }
    inputs["image_present"][0] = False
    model(inputs).sum().backward()
    assert all(isinstance(model.get_submodule(name), Generated) for name in names)
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize(
    "name", ["embedding.out", "embedding.columns.tabular", "image.stem", "linear.image"]
)
def test_what_is_not_run_with_an_embedding_is_refused_and_not_offered(name):
    with pytest.raises(ConfigError, match=f"no layer '{name}' that can be generated") as told:
        build_model(small(generated=[name], linear_path=True), volume_task(), seed=0)
    assert name not in str(told.value).split("expected some of")[1].split(", ")


@pytest.mark.parametrize("options", [HyperFusionOptions, MedFusionNetOptions])
@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"generated": ["head1", "head1"]}, "generated: expected at least one layer, each once"),
        ({"generated": []}, "generated: expected at least one layer, each once"),
        ({"embedding": 1}, "embedding = 1: input should be greater than or equal to 2"),
    ],
)
def test_layers_are_named_once_and_an_embedding_is_more_than_a_sign(options, chosen, told):
    with pytest.raises(ConfigError, match=told):
        options.parse({"fusion": "hyperfusion", **chosen}, where="test")
