import pytest
import torch
from explained import TASK, K, L, T, random_inputs, random_model

from medfusion.data.encode import FIRST_INDICATOR, VALUE
from medfusion.data.task import Task
from medfusion.explain.integrated_gradients import (
    column_attributions,
    image_attributions,
    neutral_columns,
    token_attributions,
)
from medfusion.models.options import (
    HyperFusionOptions,
    LogisticOptions,
    MedFusionNetOptions,
    TextOptions,
)

TABULAR = {  # with the steps that each takes
    "medfusion_net": (MedFusionNetOptions(modalities=("tabular", "text")), 32),
    "with_image": (MedFusionNetOptions(), 8),
    "columns_in_image": (
        MedFusionNetOptions(modalities=("image", "tabular"), fusion="film", linear_path=False),
        64,
    ),
    "hyperfusion": (HyperFusionOptions(width=8, stages=2), 256),
    "logistic": (LogisticOptions(), 2),
}
TEXT = {
    "tokens": MedFusionNetOptions(modalities=("tabular", "text")),
    "pooled": MedFusionNetOptions(modalities=("text",), text=TextOptions(pooling="mean")),
    "trained": MedFusionNetOptions(modalities=("text",), text=TextOptions(freeze=False)),
    "logistic": LogisticOptions(modalities=("tabular", "text")),
}


@pytest.mark.parametrize(("options", "steps"), TABULAR.values(), ids=TABULAR.keys())
def test_columns_add_up_to_the_change_of_the_score(options, steps):
    model, inputs = random_model(options), random_inputs(1)
    found = column_attributions(model, inputs, steps=steps)
    assert found.shape == (1, L, K)
    with torch.no_grad():
        neutral = {**inputs, "tabular": neutral_columns(inputs["tabular"])}
        change = model(inputs) - model(neutral)
    assert change.abs().min() > 1e-3
    torch.testing.assert_close(found.sum(dim=-1), change, rtol=0.01, atol=1e-3)
    assert found[0, :, 0].abs().max() == 0  # what is missing adds nothing


def test_of_a_linear_model_a_column_adds_its_weights_times_its_values():
    model, inputs = random_model(LogisticOptions()), random_inputs()
    weight = model.linear.tabular.weight.reshape(L, K, -1)
    x = inputs["tabular"]
    read = torch.cat([x[..., :1], x[..., FIRST_INDICATOR:]], dim=-1)
    by_hand = torch.einsum("lkv,bkv->blk", torch.cat([weight[..., :1], weight[..., 2:]], -1), read)
    torch.testing.assert_close(column_attributions(model, inputs, steps=2), by_hand)


def test_the_baseline_knows_nothing_and_keeps_flags():
    x = random_inputs()["tabular"]
    neutral = neutral_columns(x)
    assert not neutral[..., VALUE].any()
    assert not neutral[..., FIRST_INDICATOR:].any()
    assert torch.equal(neutral[..., 1:3], x[..., 1:3])


@pytest.mark.parametrize("options", TEXT.values(), ids=TEXT.keys())
def test_tokens_add_up_to_the_change_of_the_score(options):
    model, inputs = random_model(options, scale=0.02), random_inputs()
    inputs = {name: inputs[name] for name in ("tabular", "tokens")}
    frozen = model.text_encoder.frozen
    found = token_attributions(model, inputs, steps=64)
    assert found.shape == (3, L, T)
    assert model.text_encoder.frozen == frozen
    table = model.text_encoder.encoder.get_input_embeddings()
    with torch.no_grad():
        score = model(inputs)
        words = table.weight.clone()
        table.weight.copy_(words[:1].expand_as(words))  # every word is the padding now
        change = score - model(inputs)
        table.weight.copy_(words)
        assert torch.equal(model(inputs), score)
    torch.testing.assert_close(found.sum(dim=-1), change, rtol=0.02, atol=2e-3)
    assert found[..., 6:].abs().max() == 0


def test_states_computed_in_advance_change_nothing():
    model, inputs = random_model(TEXT["tokens"]), random_inputs()
    ahead = {**inputs, "text_states": model.text_encoder.encode(inputs["tokens"])}
    expected = token_attributions(model, inputs, steps=8)
    assert torch.equal(token_attributions(model, ahead, steps=8), expected)
    torch.testing.assert_close(
        column_attributions(model, ahead, steps=8), column_attributions(model, inputs, steps=8)
    )


@pytest.mark.parametrize("name", ["columns_in_image", "hyperfusion"])
def test_whole_images_are_read_few_at_a_time(name):
    model, inputs, rows = random_model(TABULAR[name][0]), random_inputs(2), []
    expected = column_attributions(model, inputs, steps=8)
    model.image.register_forward_pre_hook(lambda _, read: rows.append(len(read[0])))
    found = column_attributions(model, inputs, steps=8, images_at_once=4)
    torch.testing.assert_close(found, expected)
    assert max(rows) == 4
    column_attributions(model, inputs, steps=2, images_at_once=1)
    assert rows[-1] == 2  # the batch itself


def test_notes_beside_whole_images_are_explained_few_at_a_time():
    options = MedFusionNetOptions(fusion="film", linear_path=False)
    model, inputs, rows = random_model(options), random_inputs(1), []
    model.image.register_forward_pre_hook(lambda _, read: rows.append(len(read[0])))
    token_attributions(model, inputs, steps=8, images_at_once=3)
    assert max(rows) == 3


VOLUMES = Task.parse({**TASK.to_json(), "image": {"dims": 3, "size": [16, 18, 17]}}, where="test")


def on_black(*space: int, batch: int = 1) -> dict[str, torch.Tensor]:
    """Studies with something bright in the middle of a black image or volume."""
    inputs = random_inputs(batch)
    draw = torch.Generator().manual_seed(1)
    inputs["image"] = torch.full((batch, 1, *space), -1.0, dtype=torch.float64)
    middle = (..., *(slice(side // 4, side - side // 4) for side in space))
    inner = inputs["image"][middle]
    inner.copy_(torch.rand(inner.shape, generator=draw, dtype=torch.float64))
    return {name: x for name, x in inputs.items() if name != "tokens"}


IMAGES = {  # with the steps that each takes
    "volume": ({}, (16, 18, 17), 64),
    "image_only": ({"fusion": "none"}, (16, 18, 17), 64),
    "linear_path": ({"linear_path": True}, (16, 18, 17), 64),
    "image": ({}, (32, 32), 64),
    "vgg": ({"backbone": "vgg"}, (32, 32), 128),
}


@pytest.mark.parametrize(("options", "space", "steps"), IMAGES.values(), ids=IMAGES.keys())
def test_places_add_up_to_the_change_of_the_score_from_black(options, space, steps):
    chosen = HyperFusionOptions(width=8, stages=2, **options)
    model = random_model(chosen, VOLUMES if len(space) == 3 else TASK, scale=0.05)
    inputs = on_black(*space)
    found, change = image_attributions(model, inputs, [1, 0], steps=steps)
    assert found.shape == (1, 2, *space)
    black = {**inputs, "image": torch.full_like(inputs["image"], -1.0)}
    if model.linear is not None:
        kept = {"image_features": model.linear.features(inputs["image"])}
        inputs, black = {**inputs, **kept}, {**black, **kept}
    with torch.no_grad():
        expected = (model(inputs) - model(black))[:, [1, 0]]
    torch.testing.assert_close(change, expected, rtol=1e-6, atol=1e-6)
    assert expected.abs().min() > 0.05
    torch.testing.assert_close(found.flatten(2).sum(dim=2), expected, rtol=0.03, atol=0)
    assert found[inputs["image"][:, :1].expand_as(found) == -1.0].abs().max() == 0


def test_features_computed_in_advance_change_no_places():
    model = random_model(HyperFusionOptions(width=8, stages=2, linear_path=True), VOLUMES)
    inputs = on_black(16, 18, 17)
    ahead = {**inputs, "image_features": model.linear.features(inputs["image"])}
    expected = image_attributions(model, inputs, [0], steps=4)
    found = image_attributions(model, ahead, [0], steps=4)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_images_on_the_way_from_black_are_read_few_at_a_time():
    model, rows = random_model(HyperFusionOptions(width=8, stages=2), VOLUMES), []
    model.image.register_forward_pre_hook(lambda _, read: rows.append(len(read[0])))
    image_attributions(model, on_black(16, 18, 17), [0], steps=8, images_at_once=3)
    assert max(rows) == 3
