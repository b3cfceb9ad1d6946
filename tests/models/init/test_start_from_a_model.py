"""What an earlier model sets."""

import pytest
from initial_models import TASK, build, make_task, same, save, trained
from safetensors.torch import save_file

from medfusion.errors import ConfigError
from medfusion.models.contract import trainable_state
from medfusion.models.options import MedFusionNetOptions


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
