import pytest
import torch
from torch import Tensor
from waking import woken

from medfusion.data.task import Task
from medfusion.models.contract import Model, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model

B, K, L, T = 3, 4, 5, 8


def make_task(size: tuple[int, int] = (32, 32), channels: int = 1) -> Task:
    return Task.parse(
        {
            "task": {"name": "net", "kind": "multilabel"},
            "image": {"size": list(size), "channels": channels},
            "text": {"max_tokens": T},
            "features": {f"f{n}": {"kind": "numeric", "low": 0, "high": 1} for n in range(K)},
            "labels": {"names": [f"label{n}" for n in range(L)]},
        },
        where="test",
    )


def make_inputs(task: Task) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    assert task.image
    tabular = torch.randn(B, K, 3 + L, generator=draw)
    tabular[..., 1], tabular[..., 2] = 0.0, 1.0
    tokens = torch.randint(1, 900, (B, T), generator=draw)
    tokens[:, 6:] = 0
    return {
        "image": torch.randn(B, task.image.channels, *task.image.size, generator=draw),
        "image_present": torch.ones(B, dtype=torch.bool),
        "tabular": tabular,
        "tokens": tokens,
    }


def build(task: Task | None = None, **options) -> Model:
    return woken(build_model(MedFusionNetOptions(**options), task or make_task(), seed=1))


def names_of(model: Model, part: str) -> list[str]:
    return [name for name in trainable_state(model) if part in name]


def changed(model: Model, part: str) -> float:
    """How much the logits move when the parameters of ``part`` are set to zero."""
    inputs = make_inputs(make_task())
    before = model(inputs).detach()
    with torch.no_grad():
        for name in names_of(model, part):
            trainable_state(model)[name].zero_()
    return float((model(inputs).detach() - before).abs().max())


def test_no_modality_has_a_say_before_training():
    task = make_task()
    model = build_model(MedFusionNetOptions(), task, seed=1).eval()
    logits = model(make_inputs(task))
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), rtol=0, atol=1e-6)
    assert logits.abs().max() > 0


@pytest.mark.parametrize("head", ["queries", "pooled"])
def test_the_shares_of_image_tokens_reach_the_head(head):
    model, inputs = build(head=head).eval(), make_inputs(make_task())
    before = model(inputs)
    model.image.streams.log_share[:64] += 3.0  # of the finest level
    assert (model(inputs) - before).abs().max() > 1e-4


SWITCHES = {
    "attention_stream": ({"attention_stream": False}, ".tokens."),
    "exchange": ({"exchange": False}, ".to_"),
    "fpn": ({"fpn": False}, "pyramid.laterals.1"),
    "label_attention": ({"label_attention": False}, "among_labels"),
    "head": ({"head": "pooled"}, "head.queries"),
    "image": ({"modalities": ("tabular", "text")}, "image."),
    "tabular": ({"modalities": ("image", "text")}, "tabular."),
    "text": ({"modalities": ("image", "tabular")}, "text."),
}


@pytest.mark.parametrize(("off", "part"), SWITCHES.values(), ids=SWITCHES.keys())
def test_each_part_matters_and_can_be_switched_off(off, part):
    assert names_of(build(), part)
    assert changed(build(), part) > 1e-3
    without = build(**off)
    assert names_of(without, part) == []
    assert without(make_inputs(make_task())).shape == (B, L)


@pytest.mark.parametrize("way", ["to_tokens", "to_map"])
@pytest.mark.parametrize("stage", range(4))
def test_streams_exchange_both_ways_at_every_stage(way, stage):
    assert changed(build(), f"{way}.{stage}.project") > 1e-5


def test_without_exchange_the_token_stream_sees_no_stage():
    """The stream's tokens depend on the stem alone; with exchange on the stages as well."""
    felt = {}
    for exchange in (True, False):
        streams = build(exchange=exchange).image.streams
        streams.pyramid.requires_grad_(False)
        tokens = streams(make_inputs(make_task())["image"])[:, -16:]  # the grid of 4 x 4
        (tokens * torch.randn(tokens.shape)).sum().backward()
        grads = [p.grad for p in streams.stages.parameters()]
        felt[exchange] = any(grad is not None and grad.abs().max() > 0 for grad in grads)
    assert felt == {True: True, False: False}


@pytest.mark.parametrize(("fpn", "levels"), [(True, 64 + 16 + 4), (False, 4)])
def test_image_tokens_come_from_the_pyramid_and_the_stream(fpn, levels):
    image = make_inputs(make_task())["image"]
    assert build(fpn=fpn).image.streams(image).shape == (B, levels + 16, 32)
    without = build(fpn=fpn, attention_stream=False)
    assert without.image.streams(image).shape == (B, levels, 32)


@pytest.mark.parametrize("label_attention", [True, False])
def test_only_label_attention_lets_a_query_reach_another_label(label_attention):
    model = build(label_attention=label_attention)
    inputs = make_inputs(make_task())
    before = model(inputs).detach()
    with torch.no_grad():
        # not a constant, which the layer norm would take away
        trainable_state(model)["head.queries.table.weight"][2] += torch.linspace(-1, 1, 32)
    moved = (model(inputs) - before).abs().max(dim=0).values > 1e-6
    assert moved[2]
    assert moved[[0, 1, 3, 4]].tolist() == [label_attention] * 4


@pytest.mark.parametrize("head", ["queries", "pooled"])
def test_the_pixels_of_an_absent_image_and_masked_columns_do_not_count(head):
    model = build(head=head)
    inputs = make_inputs(make_task())
    inputs["image_present"][0] = False
    inputs["tabular"][1, 2, 2] = 0.0  # not selected
    before = model(inputs)
    inputs["image"][0] += 1.0
    inputs["tabular"][1, 2, 0] += 1.0
    torch.testing.assert_close(model(inputs), before)
    inputs["image"][1] += 1.0
    inputs["tabular"][2, 2, 0] += 1.0
    moved = (model(inputs) - before).abs().max(dim=1).values > 1e-4
    assert moved.tolist() == [False, True, True]


def test_missing_differs_from_unselected_and_from_zero():
    model = build(modalities=("tabular",))
    found = []
    for missing, selected in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0)):
        inputs = make_inputs(make_task())
        inputs["tabular"][:, 1] = 0.0
        inputs["tabular"][:, 1, 1:3] = torch.tensor([missing, selected])
        found.append(model(inputs))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(found[one], found[other], atol=1e-4)


@pytest.mark.parametrize(("gone", "state"), [("image", "image"), ("tokens", "text")])
def test_an_absent_modality_speaks_through_its_missing_token(gone, state):
    model = build()
    inputs = make_inputs(make_task())
    inputs[gone] = torch.zeros_like(inputs[gone])
    inputs["image_present"] = torch.full((B,), gone != "image")
    before = model(inputs).detach()
    table = trainable_state(model)[f"{state}.state.table.weight"]
    for entry, matters in ((0, True), (1, False)):
        with torch.no_grad():
            table[entry] += torch.linspace(-1, 1, 32)
        moved = (model(inputs) - before).abs().max() > 1e-4
        assert bool(moved) is matters
        with torch.no_grad():
            table[entry] -= torch.linspace(-1, 1, 32)


def test_the_linear_path_adds_what_is_linear_in_each_modality():
    task, inputs = make_task(), make_inputs(make_task())
    plain, model = build(linear_path=False), build()
    rest = {n: p for n, p in trainable_state(model).items() if not n.startswith("linear.")}
    with torch.no_grad():
        for name, value in trainable_state(plain).items():
            rest.pop(name).copy_(value)
        assert not rest
        for name in ("image", "tabular", "text"):
            model.get_parameter(f"linear.{name}.weight").zero_()
        torch.testing.assert_close(model(inputs), plain(inputs))
        for name in ("image", "tabular", "text"):
            before = model(inputs)
            model.get_parameter(f"linear.{name}.weight").normal_()
            assert (model(inputs) - before).abs().max() > 1e-3
    names = model.feature_rows()
    assert set(names) == {"tabular.maps.weight", "linear.tabular.weight"}
    axis, width = names["linear.tabular.weight"]
    assert model.get_parameter("linear.tabular.weight").shape[axis] == len(task.columns) * width


def test_sizes_are_as_promised():
    tiny, small = (
        sum(value.numel() for value in trainable_state(build(size=size)).values())
        for size in ("tiny", "small")
    )
    assert 100_000 < tiny < 250_000
    assert 1_000_000 < small < 1_500_000


@pytest.mark.parametrize(
    ("size", "channels"), [((16, 16), 1), ((33, 47), 3), ((64, 100), 1), ((128, 128), 3)]
)
def test_any_image_size_and_channels(size, channels):
    task = make_task(size, channels)
    logits = build(task)(make_inputs(task))
    assert logits.shape == (B, L)
    assert torch.isfinite(logits).all()


def test_evaluation_mode_changes_nothing():
    model, inputs = build(), make_inputs(make_task())
    assert torch.equal(model.train()(inputs), model.eval()(inputs))
