"""What torchvision's weights set, and who needs the file."""

import json

import pytest
import torch
from initial_models import build, densenet, same, save, trained

from medfusion.errors import ConfigError, DataError
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.saved import load_model


def test_the_exchange_adds_nothing_to_pretrained_maps_at_first(weights):
    """With all parts on, the pyramid reads what it reads without the token stream."""
    found = []
    for attention in (True, False):
        streams = build(init=str(weights), attention_stream=attention).image.streams
        streams.pyramid.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        streams(torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_a_side_that_gets_the_other_weights_keeps_the_exchange_as_it_was(weights):
    streams = build(init=str(weights), weights_follow=True).image.streams
    assert all(part.project.weight.any() for part in streams.tokens.to_map)


def test_each_norm_has_its_own_start(weights):
    batch, group = (build(init=str(weights), norm=norm) for norm in ("batch", "group"))
    assert [n for n, p in batch.named_parameters() if not p.requires_grad]
    assert all(p.requires_grad for p in group.parameters())
    assert frozen_sha256(batch) != frozen_sha256(group)
    theirs = densenet().features.norm5.weight
    assert torch.equal(group.image.streams.final.norm.weight, theirs)


def test_the_digest_covers_the_fixed_statistics(weights):
    before = frozen_sha256(build(init=str(weights)))
    state = densenet().state_dict()
    state["features.denseblock3.denselayer2.norm1.running_var"][7] += 0.5
    torch.save(state, weights)
    assert frozen_sha256(build(init=str(weights))) != before


def test_a_model_without_images_has_no_use_for_them(weights):
    model = build(init=str(weights), modalities=("tabular",))
    assert model.origin is None


def test_a_side_that_gets_the_weights_needs_the_file_only_for_frozen_ones(weights):
    open_options = {"init": str(weights), "norm": "group"}
    sent = build(**open_options)
    batch_sent = build(init=str(weights), seed=3)
    frozen = frozen_sha256(build(init=str(weights), weights_follow=True))
    assert frozen == frozen_sha256(batch_sent)
    weights.unlink()
    received = build(**open_options, seed=9, weights_follow=True)
    received.load_state_dict(trainable_state(sent), strict=False)
    assert same(received, sent, "") == {True}
    for needy in ({"norm": "batch"}, {"frozen_stages": 1}):
        with pytest.raises(ConfigError, match=r"model\.init"):
            build(**open_options | needy, weights_follow=True)


def test_a_saved_model_loads_beside_its_file_only(tmp_path, weights):
    options = MedFusionNetOptions(size="121", init=str(weights), frozen_stages=1)
    model = trained(options)
    folder = save(tmp_path / "model", model, options)
    assert same(load_model(folder).module, model, "") == {True}
    state = densenet().state_dict()
    state["features.norm0.bias"][0] += 1.0
    torch.save(state, weights)
    with pytest.raises(
        DataError, match=r"frozen weights on this machine \(text encoder, model\.init"
    ):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ConfigError, match="no file"):
        load_model(folder)


def test_a_model_passes_on_what_it_kept_frozen(tmp_path, weights):
    options = MedFusionNetOptions(size="121", init=str(weights))
    first = trained(options)
    folder = save(tmp_path / "model", first, options)
    assert json.loads((folder / "model.json").read_text())["model"]["init"] == str(weights)
    second = build(init=str(folder), seed=8)
    assert same(second, first, "") == {True}
    assert frozen_sha256(second) == frozen_sha256(first)
