"""``model.init`` as a file: where it is looked for, and in which formats."""

import json

import pytest
import torch
from initial_models import build, densenet, save, trained
from safetensors.torch import save_file
from torchvision.models import DenseNet, densenet169

from medfusion.errors import ConfigError
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.pretrained import find_init


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "cache"])
def test_a_file_is_read_in_every_format_and_from_the_cache(kind, tmp_path, cache, weights):
    state, name = densenet().state_dict(), "densenet121-a639ec97.pth"
    path = {"cache": cache / name, "safetensors": tmp_path / "d.safetensors"}.get(kind, weights)
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    model = build(init=name if kind == "cache" else str(path))
    ours = model.image.streams.stages[1][0].conv2.weight
    assert torch.equal(ours, state["features.denseblock2.denselayer1.conv2.weight"])
    assert str(path) in model.origin
    assert "drawn afresh: head, image.state.table, image.streams.norm, " in model.origin


def test_a_path_that_is_not_here_is_looked_for_in_the_cache_by_its_name(cache, weights):
    moved = weights.rename(cache / "densenet.pth")
    assert find_init("/of/another/machine/densenet.pth") == moved


def test_a_missing_file_says_where_it_was_looked_for_and_how_to_get_it(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"DenseNet121_Weights.*get_state_dict") as caught:
        build(init=str(tmp_path / "none.pth"))
    assert "none.pth" in str(caught.value)
    assert "no file there or in torchvision's cache" in str(caught.value)
    assert str(cache) not in str(caught.value)  # a Node's errors reach the coordinator


def test_a_name_is_not_looked_for_in_the_working_directory(weights, monkeypatch):
    monkeypatch.chdir(weights.parent)
    with pytest.raises(ConfigError, match="no file"):
        build(init="densenet.pth")


# What does not fit


def test_another_architecture_is_refused_with_a_count(tmp_path):
    torch.save(densenet169().state_dict(), tmp_path / "169.pth")
    with pytest.raises(ConfigError, match=r"\d+ of \d+ tensors of the convolutional stream fit"):
        build(init=str(tmp_path / "169.pth"))


def test_torchvisions_weights_fit_no_other_size(weights):
    with pytest.raises(ConfigError, match=r"0 of \d+ tensors .* fit size = 'tiny'"):
        build(size="tiny", init=str(weights))


@pytest.mark.parametrize(
    "content",
    [[1.0], {}, dict.fromkeys(["features.conv0.weight", "features.norm5.weight"], torch.ones(1))],
    ids=["no weights", "of another network", "damaged"],
)
def test_a_message_on_a_file_names_init_and_no_path_of_this_machine(content, cache):
    """A Node's errors reach the coordinator."""
    torch.save(content, cache / "d.pth")
    with pytest.raises(ConfigError, match=r"^model\.init = 'd\.pth': ") as caught:
        build(init="d.pth")
    assert str(cache) not in str(caught.value)


@pytest.mark.parametrize("change", [{"task": {}}, {"privacy": 3}, {"frozen_sha256": ""}], ids=str)
def test_a_message_on_a_model_folder_names_init_and_no_path_of_this_machine(change, cache):
    options = MedFusionNetOptions()
    folder = save(cache / "model", trained(options), options)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | change))
    with pytest.raises(ConfigError, match=r"^model\.init = 'model': ") as caught:
        build(size="tiny", init="model")
    assert str(cache) not in str(caught.value)


def test_a_network_without_statistics_is_refused(tmp_path):
    state = {n: v for n, v in densenet().state_dict().items() if "running_mean" not in n}
    torch.save(state, tmp_path / "d.pth")
    with pytest.raises(ConfigError, match=r"damaged DenseNet: .*running_mean"):
        build(init=str(tmp_path / "d.pth"))


@pytest.mark.parametrize("content", ["text", "pickle", "list", "folder"])
def test_what_holds_no_weights_is_refused(content, tmp_path):
    path = tmp_path / "file.pth"
    if content == "text":
        path.write_text("weights")
    elif content == "folder":
        path.mkdir()
    else:
        torch.save({"model": DenseNet} if content == "pickle" else [1.0], path)
    with pytest.raises(ConfigError, match="expected a state dict"):
        build(init=str(path))


def test_options_that_freeze_or_fix_need_a_source():
    with pytest.raises(ConfigError, match="frozen_stages = 2 would freeze random weights"):
        MedFusionNetOptions.parse({"frozen_stages": 2}, where="test")
    for wrong in ({"size": "121"}, {"size": "small", "init": "x"}):
        with pytest.raises(ConfigError, match="norm = 'batch' takes its statistics"):
            MedFusionNetOptions.parse({"norm": "batch", **wrong}, where="test")
    assert MedFusionNetOptions(size="121").image_norm == "group"
    assert MedFusionNetOptions(size="121", init="x").image_norm == "batch"
    assert MedFusionNetOptions(size="small", init="x").image_norm == "group"
