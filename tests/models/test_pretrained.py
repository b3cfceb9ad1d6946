"""``model.init``: what is read, where it is looked for, what it sets, and what stays frozen."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import DenseNet, densenet169

from medfusion.data.task import Task
from medfusion.errors import ConfigError, DataError
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.initial_weights import InitialWeights
from medfusion.models.medfusion_net import SIZES
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.pretrained import find_init
from medfusion.models.registry import build_model
from medfusion.models.saved import load_model, save_model

SHORT = (2, 2, 2, 2)  # layers of size 121 here


def make_task(*, labels=("icu", "died"), features=("age",), channels=1, pixels=32) -> Task:
    return Task.parse(
        {
            "task": {"name": "init", "kind": "multilabel"},
            "image": {"size": [pixels, pixels], "channels": channels},
            "features": {f: {"kind": "numeric", "low": 0, "high": 1} for f in features},
            "labels": {"names": list(labels)},
        },
        where="test",
    )


TASK = make_task()


def densenet() -> DenseNet:
    torch.manual_seed(5)
    network = DenseNet(32, SHORT, 64)
    for name, value in network.state_dict().items():
        if "running" in name:
            value.copy_(0.2 * torch.rand(value.shape) + (1.0 if "var" in name else 0.0))
    return network


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Torchvision's cache, empty; size 121 has few layers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    whole = SIZES["121"]
    monkeypatch.setitem(SIZES, "121", replace(whole, streams=replace(whole.streams, layers=SHORT)))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "densenet.pth"
    torch.save(densenet().state_dict(), path)
    return path


def build(task: Task = TASK, *, seed: int = 0, weights_follow: bool = False, **options):
    options = MedFusionNetOptions(**{"size": "121"} | options)
    return build_model(options, task, seed=seed, weights_follow=weights_follow)


def save(folder, model, options: MedFusionNetOptions, task: Task = TASK):
    card = {
        "task": task.to_json(),
        "model": options.model_dump(mode="json"),
        "frozen_sha256": frozen_sha256(model),
        "seed": 0,
        "selection": None,
        "selection_method": "none",
        "top_n": 1,
    }
    save_model(folder, trainable_state(model), card)
    return folder


def trained(options: MedFusionNetOptions, task: Task = TASK):
    """A model whose weights no seed gives."""
    model = build_model(options, task, seed=0)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(1.0)
    return model


def same(first, second, part: str) -> set[bool]:
    theirs = dict(second.named_parameters())
    return {
        torch.equal(value, theirs[name])
        for name, value in first.named_parameters()
        if name.startswith(part)
    }


# Where a file is looked for, and in which formats


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


# What torchvision's weights set


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


# What another model sets


def test_a_model_passes_on_all_its_weights(tmp_path):
    options = MedFusionNetOptions()
    first = trained(options)
    folder = save(tmp_path / "model", first, options)
    for init in (folder, folder / "model.safetensors"):
        second = build(size="tiny", init=str(init), seed=4)
        assert same(second, first, "") == {True}
        assert "drawn afresh" not in second.origin


def test_what_stands_for_other_things_starts_afresh(tmp_path):
    options = MedFusionNetOptions()
    first = trained(options)
    folder = str(save(tmp_path / "model", first, options))
    other_labels = build(make_task(labels=("icu", "shock")), size="tiny", init=folder)
    other_columns = build(make_task(features=("dose",)), size="tiny", init=folder)
    image_only = build(size="tiny", init=folder, modalities=("image",))
    for model in (other_labels, other_columns, image_only):
        assert same(model, first, "image.") == {True}
    assert True not in same(other_labels, first, "head.queries") | same(
        other_labels, first, "tabular."
    )
    assert same(other_columns, first, "head.queries") == {True}
    assert True not in same(other_columns, first, "tabular.maps")
    assert True not in same(image_only, first, "head.queries")
    assert other_labels.origin.endswith("drawn afresh: head, linear, tabular")


def test_what_makes_weights_of_columns_starts_afresh_where_they_are_others(tmp_path):
    options = MedFusionNetOptions(fusion="hyperfusion", rank=2)
    first = trained(options)
    folder = save(tmp_path / "model", first, options)
    made = [f"image.streams.transitions.2.conv.{part}." for part in ("generator", "left", "bias")]
    choice = {"size": "tiny", "fusion": "hyperfusion", "rank": 2}
    again = build(init=str(folder), **choice)
    assert same(again, first, "") == {True}
    others = make_task(features=("dose",)), make_task(labels=("icu", "shock"))
    models = [build(task, init=str(folder), **choice) for task in others]
    save_file(
        {n: p.detach() for n, p in trainable_state(first).items()}, tmp_path / "w.safetensors"
    )
    models.append(build(init=str(tmp_path / "w.safetensors"), **choice))
    for model in models:
        assert [same(model, first, part) for part in made] == [{False}] * 3
        assert same(model, first, "image.streams.transitions.2.conv.base.") == {True}
        assert same(model, first, "image.streams.stages.") == {True}
        assert same(model, first, "embedding.") == {False}
        assert "image.streams.transitions" in model.origin.partition("drawn afresh")[2]


def test_generators_of_other_columns_stay_trainable_in_a_frozen_stream(tmp_path):
    options = MedFusionNetOptions(fusion="hyperfusion")
    folder = str(save(tmp_path / "model", trained(options), options))
    choice = {"size": "tiny", "fusion": "hyperfusion", "init": folder, "frozen_stages": 4}
    model = build(make_task(features=("dose",)), **choice)
    conv = model.image.streams.transitions[2].conv
    assert not conv.base.weight.requires_grad
    assert conv.generator.weight.requires_grad


def test_the_linear_path_goes_on_where_its_features_are_the_same(tmp_path):
    options = MedFusionNetOptions()
    task = make_task(pixels=64)
    first = trained(options, task)
    folder = str(save(tmp_path / "model", first, options, task))
    choice = {"size": "tiny", "init": folder}
    again = build(task, **choice)
    larger = build(make_task(pixels=120), **choice)  # as many octaves, of other scales
    other_columns = build(make_task(pixels=64, features=("dose",)), **choice)
    assert same(again, first, "linear.") == {True}
    assert same(larger, first, "linear.image") == {False}
    assert same(larger, first, "linear.tabular") == {True}
    assert same(other_columns, first, "linear.image") == {True}
    assert same(other_columns, first, "linear.tabular") == {False}


def test_without_its_description_a_models_file_gives_the_image_part_only(tmp_path):
    options = MedFusionNetOptions()
    first = trained(options)
    save_file(
        {n: p.detach() for n, p in trainable_state(first).items()}, tmp_path / "w.safetensors"
    )
    second = build(size="tiny", init=str(tmp_path / "w.safetensors"))
    assert same(second, first, "image.") == {True}
    assert True not in same(second, first, "head.queries")


def test_a_model_of_another_size_or_channels_is_refused(tmp_path):
    options = MedFusionNetOptions()
    folder = str(save(tmp_path / "model", trained(options), options))
    for task, size in ((TASK, "small"), (make_task(channels=3), "tiny")):
        with pytest.raises(ConfigError, match=r"\d+ of \d+ tensors of the convolutional stream"):
            build(task, size=size, init=folder)


def test_a_damaged_model_folder_names_init(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.init = .*expected a model folder"):
        build(size="tiny", init=str(tmp_path / "model"))


# What is told of it


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_source_of_the_weights_is_recorded_without_its_place(tmp_path, weights):
    options = MedFusionNetOptions()
    first = trained(options)
    folder = save(tmp_path / "model", first, options)
    plain = tmp_path / "w.safetensors"
    plain.write_bytes((folder / "model.safetensors").read_bytes())
    for init, size, kind, file in (
        (weights, "121", "torchvision", weights),
        (plain, "tiny", "tensors", plain),
        (folder, "tiny", "medfusion", folder / "model.safetensors"),
        (folder / "model.safetensors", "tiny", "medfusion", folder / "model.safetensors"),
    ):
        found = build(size=size, init=str(init)).initial_weights
        assert found == InitialWeights(kind=kind, sha256=digest(file))
        assert str(tmp_path) not in repr(found)


def test_a_model_without_init_has_no_record(weights):
    assert build(size="tiny").initial_weights is None
    assert build(init=str(weights), modalities=("tabular",)).initial_weights is None


def test_the_largest_epsilon_that_a_model_declares_is_recorded(tmp_path):
    options = MedFusionNetOptions()
    folder = save(tmp_path / "model", trained(options), options)
    card = json.loads((folder / "model.json").read_text())
    earlier = {"kind": "tensors", "sha256": "c" * 64}
    sites = {"a": {"epsilon": 2.0, "delta": 1e-4}, "b": {"epsilon": 5.5, "delta": 1e-5}}
    privacy = {"enabled": True, "simulated": True, "sites": sites}
    told = card | {"privacy": privacy, "initial_weights": earlier}
    (folder / "model.json").write_text(json.dumps(told))
    found = build(size="tiny", init=str(folder)).initial_weights
    assert (found.epsilon, found.delta, found.simulated) == (5.5, 1e-5, True)
    assert found.initial_weights == InitialWeights(**earlier)
    open_run = {"enabled": False, "simulated": True, "sites": {}}
    (folder / "model.json").write_text(json.dumps(card | {"privacy": open_run}))
    found = build(size="tiny", init=str(folder)).initial_weights
    assert (found.epsilon, found.simulated) == (None, False)


RECORD = {"kind": "medfusion", "sha256": "c" * 64}
WRONG = [
    {"initial_weights": "abc"},
    {"kind": ["a"]},
    {"kind": "elsewhere"},
    {"sha256": "north"},
    {"epsilon": "x", "delta": 0.1},
    {"epsilon": 1.0, "delta": "1e-5"},
    {"epsilon": 1.0},
    {"epsilon": float("inf"), "delta": 0.1},
    {"patients": ["Ada"]},
]


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"sites": {"a": {}}}},
        {"privacy": {"sites": {"a": {"epsilon": float("nan"), "delta": 0.1}}}},
        {"privacy": "none"},
        {"initial_weights": 3},
        {"privacy": {"sites": {"a": {"epsilon": 1.0, "delta": "1e-5"}}}},
        *({"initial_weights": RECORD | wrong} for wrong in WRONG),
        *({"initial_weights": RECORD | {"initial_weights": RECORD | wrong}} for wrong in WRONG),
    ],
)
def test_a_card_that_no_run_wrote_is_refused_before_the_training(tmp_path, change):
    options = MedFusionNetOptions()
    folder = save(tmp_path / "model", trained(options), options)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | change))
    with pytest.raises(ConfigError, match="under privacy and initial_weights"):
        build(size="tiny", init=str(folder))


# Freezing


@pytest.mark.parametrize("stages", range(5))
def test_frozen_stages_neither_train_nor_travel(stages, weights):
    model = build(init=str(weights), norm="group", frozen_stages=stages)
    streams = model.image.streams
    frozen = {name for name, value in streams.named_parameters() if not value.requires_grad}
    expected = {
        0: (),
        1: ("stem.", "stages.0."),
        2: ("stem.", "stages.0.", "stages.1.", "transitions.0."),
        3: ("stem.", "stages.0.", "stages.1.", "stages.2.", "transitions.0.", "transitions.1."),
        4: ("stem.", "stages.", "transitions.", "final."),
    }[stages]
    assert frozen == {n for n, _ in streams.named_parameters() if n.startswith(expected)}
    assert not any(f"image.streams.{name}" in trainable_state(model) for name in frozen)


def test_autograd_keeps_nothing_of_what_is_frozen(weights):
    model = build(init=str(weights), norm="group", frozen_stages=1)
    found = []
    streams = model.image.streams
    for stage in streams.stages[:2]:
        stage.register_forward_hook(lambda _part, _inputs, output: found.append(output))
    streams(torch.randn(2, 1, 32, 32))
    assert [output.requires_grad for output in found] == [False, True]


def test_small_sizes_freeze_too(tmp_path):
    options = MedFusionNetOptions()
    first = trained(options)
    folder = str(save(tmp_path / "model", first, options))
    model = build(size="tiny", init=folder, frozen_stages=4, seed=1)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[2] for name in frozen} == {"stem", "stages", "transitions"}
    assert same(model, first, "image.streams.stages") == {True}


# Who needs the file


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
