from pathlib import Path

import pytest

from medfusion.config import RunConfig, config_text, load_config
from medfusion.errors import ConfigError
from medfusion.training.recipes import RECIPES, with_recipe

CONFIG = """
[run]
name = "study"
task = "task.toml"
[training]
recipe = "private"
batch_size = 48
[privacy]
target_epsilon = 2.0
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    return file


def settings_of(config: RunConfig) -> dict[str, dict[str, object]]:
    data = config.model_dump(mode="json")
    return {
        section: {key: data[section][key] for key in keys}
        for section, keys in RECIPES["private"].items()
    }


def test_a_recipe_fills_what_the_config_leaves_unset(path: Path) -> None:
    found = settings_of(load_config(path))
    assert found["training"].pop("batch_size") == 48
    expected = {name: dict(keys) for name, keys in RECIPES["private"].items()}
    assert expected["training"].pop("batch_size") != 48
    assert found == expected
    assert load_config(path).privacy.target_epsilon == 2.0


def test_each_setting_of_a_recipe_differs_from_the_default_or_says_why_not(path: Path) -> None:
    bare = RunConfig.parse({"run": {"name": "a", "task": "b"}}, where="test")
    usual = settings_of(bare)
    same = {
        f"{section}.{key}"
        for section, keys in RECIPES["private"].items()
        for key, value in keys.items()
        if usual[section][key] == value
    }
    # They belong to the others: a rate that does not fall, a norm that the rate is meant for.
    assert same <= {"training.schedule", "privacy.max_grad_norm"}


def test_what_is_given_wins_over_the_recipe(path: Path) -> None:
    config = load_config(
        path, ["server.ema=0", "privacy.unit_norm=false", "training.recipe=private"]
    )
    assert config.server.ema == 0
    assert not config.privacy.unit_norm
    assert config.training.optimizer == "sgd"


def test_another_optimizer_does_not_get_the_rate_of_the_recipe(path: Path) -> None:
    bare = RunConfig.parse({"run": {"name": "a", "task": "b"}}, where="test")
    config = load_config(path, ["training.optimizer=adamw"])
    assert config.training.learning_rate == bare.training.learning_rate
    assert config.server.ema == RECIPES["private"]["server"]["ema"]
    rate = RECIPES["private"]["training"]["learning_rate"]
    assert load_config(path, ["training.optimizer=sgd"]).training.learning_rate == rate


def test_the_resolved_copy_shows_every_setting_and_keeps_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(path)
    copy = path.parent / "copy.toml"
    copy.write_text(config_text(config))
    for section, keys in RECIPES["private"].items():
        for key in keys:
            assert f"{key} = " in copy.read_text(), (section, key)
    later = {"private": {"training": {"learning_rate": 77.0}, "server": {"ema": 0.1}}}
    monkeypatch.setattr("medfusion.training.recipes.RECIPES", later)
    assert load_config(copy) == config
    assert load_config(path) != config


def test_an_unknown_recipe_is_refused_with_the_nearest(path: Path) -> None:
    message = r"training\.recipe = 'privat': expected one of private \(did you mean 'private'\?\)"
    with pytest.raises(ConfigError, match=message):
        load_config(path, ["training.recipe=privat"])
    with pytest.raises(ConfigError, match=r"training\.recipe = 3"):
        load_config(path, ["training.recipe=3"])


def test_a_section_that_is_no_table_is_left_to_validation(path: Path) -> None:
    with pytest.raises(ConfigError, match="server"):
        load_config(path, ["server=3"])


def test_without_a_recipe_nothing_changes() -> None:
    for data in ({}, {"training": {"steps": 3}}, {"training": 5}, {"training": {"recipe": None}}):
        assert with_recipe(data) == data
    data = {"training": {"recipe": "private"}}
    with_recipe(data)
    assert data == {"training": {"recipe": "private"}}  # left as it was
