"""Options of [compression] that would do nothing are refused; resolved ones load."""

import pytest

from medfusion.config import config_text, load_config
from medfusion.errors import ConfigError
from medfusion.training.personalisation_options import PersonalisationOptions
from medfusion.transport.compression_options import CompressionOptions

TEXT = '[run]\nname = "r"\ntask = "task.toml"\n'


@pytest.mark.parametrize(
    ("idle", "told"),
    [
        ({"fraction": 0.1}, "fraction = 0.1 is what level 'topk' sends"),
        ({"fraction": 0.1, "level": "int8"}, "expected level = 'topk'"),
        ({"fraction": 0.1, "byte_budget": 100}, "expected level = 'topk'"),
        ({"error_feedback": False}, "loses nothing"),
        ({"down": {"fraction": 0.1}}, "expected level = 'topk'"),
        ({"level": "int8", "down": {"error_feedback": False}}, "loses nothing"),
    ],
)
def test_idle_compression_is_refused(idle, told):
    with pytest.raises(ConfigError, match=told):
        CompressionOptions.parse(idle, where="[compression]")


@pytest.mark.parametrize("idle", [{"pull": 0.1}, {"learning_rate": 0.1}])
def test_idle_personalisation_is_refused(idle):
    with pytest.raises(ConfigError, match="expected steps above 0"):
        PersonalisationOptions.parse(idle, where="[personalisation]")
    assert PersonalisationOptions.parse({**idle, "steps": 1}, where="x").steps == 1


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["compression.level=int8", "compression.error_feedback=false"],
        ["compression.down.level=topk", "compression.down.fraction=0.2"],
        ["compression.byte_budget=100", "compression.error_feedback=false"],
        ["personalisation.steps=3", "personalisation.pull=0.1"],
    ],
)
def test_a_resolved_config_loads(tmp_path, sets):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    config = load_config(path, sets)
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(config_text(config))
    assert "error_feedback" in resolved.read_text()
    assert load_config(resolved) == config
