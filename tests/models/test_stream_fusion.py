"""Tabular columns inside MedFusionNet's image streams: where fusions start, what they change."""

import pytest
import torch

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.contract import trainable_state
from medfusion.models.options import TRANSITIONS, MdfNetOptions, MedFusionNetOptions
from medfusion.models.registry import build_model

B = 4
TASK = Task.parse(
    {
        "task": {"name": "streams", "kind": "multilabel"},
        "image": {"size": [16, 16]},
        "features": {"sex": {"kind": "binary"}, "age": {"kind": "numeric", "low": 0, "high": 99}},
        "labels": {"names": ["icu"]},
    },
    where="test",
)
WITHOUT = TASK.model_copy(update={"features": {}})
FUSIONS = ("film", "daft", "interactive", "hyperfusion")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(**options):
    options = {"modalities": ("image", "tabular"), "linear_path": False} | options
    return build_model(MedFusionNetOptions(**options), TASK, seed=0).double()


def inputs(count: int = B) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tabular = torch.randn(count, 2, 4, generator=draw, dtype=torch.float64)
    tabular[..., 1], tabular[..., 2] = 0.0, 1.0
    image = torch.randn(count, 1, 16, 16, generator=draw, dtype=torch.float64)
    return {"image": image, "image_present": torch.ones(count) > 0, "tabular": tabular}


def shaken(model):
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(0.05 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
    return model


def image_tokens(model, given):
    return model._memories(given, None)[0].tokens


@pytest.mark.parametrize("fusion", ["film", "daft"])
def test_modulation_begins_as_the_network_without(fusion):
    plain, model = build(), build(fusion=fusion)
    assert torch.equal(model(inputs()), plain(inputs()))
    assert not torch.allclose(shaken(model)(inputs()), plain(inputs()))


@pytest.mark.parametrize("generated", [None, (f"{TRANSITIONS}0.conv", f"{TRANSITIONS}1.conv")])
@pytest.mark.parametrize("rank", [None, 2])
def test_with_its_generators_at_zero_it_is_the_network_without(generated, rank):
    plain, model = shaken(build()), build(fusion="hyperfusion", generated=generated, rank=rank)
    state = model.state_dict()
    known = plain.state_dict()
    for name in state:
        state[name] = known.get(name.replace(".base.", "."), torch.zeros_like(state[name]))
    model.load_state_dict(state)
    torch.testing.assert_close(model(inputs()), plain(inputs()), rtol=1e-12, atol=1e-12)
    made = {name.partition(".generator")[0] for name in state if ".generator." in name}
    assert made == set(generated or (f"{TRANSITIONS}2.conv",))


@pytest.mark.parametrize(
    "options",
    [*({"fusion": name} for name in FUSIONS), {"fusion_3d": "sum"}, {"fusion_3d": "gated"}],
)
def test_columns_reach_the_image_tokens_and_only_where_a_fusion_is_chosen(options):
    given, plain = inputs(), shaken(build())
    other = {**given, "tabular": given["tabular"].flip(0)}
    assert torch.equal(image_tokens(plain, given), image_tokens(plain, other))
    model = shaken(build(**options))
    assert not torch.allclose(image_tokens(model, given), image_tokens(model, other))


def test_the_rest_begins_alike_whatever_the_fusion():
    plain = build().state_dict()
    for options in (*({"fusion": name} for name in FUSIONS), {"fusion_3d": "sum"}):
        state = build(**options).state_dict()
        shared = plain.keys() & state.keys()
        assert len(plain) - len(shared) == (options.get("fusion") == "hyperfusion")
        for name in shared:
            assert torch.equal(state[name], plain[name]), name


def test_wrong_layers_are_refused():
    with pytest.raises(ConfigError, match=r"no layer .*stages.0.0.conv1'.*transitions.2.conv"):
        build(fusion="hyperfusion", generated=("image.streams.stages.0.0.conv1",))
    with pytest.raises(ConfigError, match="generates no layers"):
        MedFusionNetOptions.parse({"rank": 2}, where="test")
    with pytest.raises(ConfigError, match="expected 0 beside fusion"):
        MedFusionNetOptions.parse({"fusion": "film", "auxiliary_heads": 0.5}, where="test")


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        (MedFusionNetOptions(fusion="film"), WITHOUT, r"fusion = 'film'.*reads image alone"),
        (
            MedFusionNetOptions(fusion_3d="sum", modalities=("tabular",)),
            TASK,
            r"fusion_3d = 'sum'.*reads tabular alone.*with image",
        ),
        (
            MedFusionNetOptions(fusion="daft", modalities=("image",)),
            TASK,
            r"fusion = 'daft'.*with tabular",
        ),
    ],
)
def test_a_fusion_without_what_it_fuses_is_refused(options, task, message):
    with pytest.raises(ConfigError, match=message):
        build_model(options, task, seed=0)


def detection(features: bool) -> Task:
    sections = {
        "task": {"name": "boxes", "kind": "detection"},
        "image": {"size": [32, 32]},
        "labels": {"names": ["nodule"]},
    }
    if features:
        sections["features"] = {"sex": {"kind": "binary"}}
    return Task.parse(sections, where="test")


@pytest.mark.parametrize("chosen", [{"fusion_3d": "gated"}, {"spatialisation": "image"}])
def test_a_detectors_fusion_without_columns_is_refused(chosen):
    key = next(iter(chosen))
    for task, options in (
        (detection(False), MdfNetOptions(**chosen)),
        (detection(True), MdfNetOptions(**chosen, modalities=("image",))),
    ):
        with pytest.raises(ConfigError, match=f"model.{key} = .*reads image alone"):
            build_model(options, task, seed=0)
        build_model(options, task, seed=0, weights_follow=True)  # a folder of an earlier version
    build_model(MdfNetOptions(**chosen), detection(True), seed=0)
    build_model(MdfNetOptions(modalities=("image",)), detection(True), seed=0)  # the usual one
    build_model(MdfNetOptions(spatialisation="image", fusion_3d="none"), detection(True), seed=0)
