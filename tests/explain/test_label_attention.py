import pytest
import torch
from explained import L, random_inputs, random_model

from medfusion.explain.attention import label_attention, on_the_image, reads_by_queries
from medfusion.models.blocks.attention import Attention
from medfusion.models.options import HyperFusionOptions, MedFusionNetOptions


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_times_values_give_the_output(gated, masked):
    draw = torch.Generator().manual_seed(0)
    layer = Attention(8, 2).double()
    query, key, gate, share = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((3, 2, 8), (3, 5, 8), (3, 5, 1), (5,))
    )
    keep = torch.rand(3, 5, generator=draw) > 0.4
    keep[:, 0] = True
    more = (keep if masked else None, gate if gated else None, share)
    weights = layer.weights(query, key, *more)
    _, values = layer.key_value(key).chunk(2, dim=-1)
    mixed = weights @ values.reshape(3, 5, 2, 4).transpose(1, 2)
    output = layer.out(mixed.transpose(1, 2).reshape(3, 2, 8))
    torch.testing.assert_close(layer(query, key, *more), output)
    if masked:
        assert weights.masked_select(~keep[:, None, None, :]).abs().max() == 0
    if not gated:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 2).double())


@pytest.mark.parametrize("options", [MedFusionNetOptions(), MedFusionNetOptions(gating="token")])
def test_every_label_looks_at_every_modality_and_label(options):
    model, inputs = random_model(options), random_inputs()
    before = model(inputs)
    found = label_attention(model, inputs)
    assert torch.equal(model(inputs), before)
    shapes = {name: weights.shape for name, weights in found.weights.items()}
    tokens = sum(height * width for height, width in model.image.streams.grids)
    assert shapes == {"image": (3, L, 1 + tokens), "tabular": (3, L, 6), "text": (3, L, 10)}
    assert {name: x.shape for name, x in found.evidence.items()} == dict.fromkeys(shapes, (3, L))
    assert found.among_labels.shape == (3, L, L)
    torch.testing.assert_close(found.among_labels.sum(-1), torch.ones(3, L).double())
    if options.gating == "none":
        for weights in found.weights.values():
            torch.testing.assert_close(weights.sum(-1), torch.ones(3, L).double())
    assert found.weights["text"][..., 7:].abs().max() == 0  # padding


def test_evidence_is_the_length_of_what_is_added_to_a_label():
    model, inputs = random_model(MedFusionNetOptions(modalities=("tabular",))), random_inputs()
    memory = model.tabular(inputs["tabular"])
    layer = model.head.layers[0]
    added = layer.gather["tabular"](
        layer.norm(model.head.queries(memory.tokens)), memory.tokens, memory.keep
    )
    found = label_attention(model, inputs).evidence["tabular"]
    torch.testing.assert_close(found, added.pow(2).sum(-1).sqrt())


def test_image_weights_lie_on_their_grids():
    model = random_model(MedFusionNetOptions(modalities=("image",)))
    weights = torch.arange(1.0 + sum(h * w for h, w in model.image.streams.grids))
    grids = on_the_image(model, weights.expand(1, 1, -1))
    assert [x.shape[2:] for x in grids] == model.image.streams.grids
    assert grids[0][0, 0, 0].tolist() == [float(n) for n in range(1, 1 + grids[0].shape[-1])]
    assert grids[-1].max() == weights[-1]


def test_without_attention_among_labels_there_is_no_picture_of_it():
    model = random_model(MedFusionNetOptions(modalities=("tabular",), label_attention=False))
    assert label_attention(model, random_inputs()).among_labels is None


def test_which_models_have_label_queries():
    assert reads_by_queries(random_model(MedFusionNetOptions(modalities=("tabular",))))
    pooled = MedFusionNetOptions(modalities=("tabular",), head="pooled")
    assert not reads_by_queries(random_model(pooled))
    assert not reads_by_queries(random_model(HyperFusionOptions(fusion="tabular")))
