import subprocess
import sys

import pytest

from medfusion.errors import ConfigError
from medfusion.training.options import TrainingOptions


@pytest.mark.parametrize(
    ("patients", "epochs", "batch", "steps"),
    [(100, 1, 32, 4), (96, 1, 32, 3), (5, 1, 32, 1), (100, 3, 32, 10)],
)
def test_steps_follow_from_epochs_and_declared_patients(
    patients: int, epochs: int, batch: int, steps: int
) -> None:
    options = TrainingOptions(local_epochs=epochs, batch_size=batch)
    assert options.steps_per_round(patients) == steps


def test_steps_can_be_set_outright() -> None:
    assert TrainingOptions(steps=100, batch_size=4).steps_per_round(17) == 100


@pytest.mark.parametrize(
    "data",
    [
        {"local_epochs": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"momentum": 0.9, "optimizer": "adamw"},
        {"views": 0, "augmentation": "light"},
        {"views": 2},
    ],
)
def test_values_that_cannot_train_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(data))):
        TrainingOptions.parse(data, where="config.toml")


def test_options_need_neither_torch_nor_an_accountant() -> None:
    code = (
        "import sys, medfusion.training.options, medfusion.privacy.options\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'dp_accounting', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"rate_multipliers": {"imagery": 2.0}}, "rate_multipliers.imagery"),
        ({"rate_multipliers": {"image": 0.0}}, "rate_multipliers.image"),
        ({"schedule": "linear"}, "schedule"),
        ({"small_images": 1.0}, "small_images"),
    ],
)
def test_unknown_parts_and_schedules_are_refused(data: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TrainingOptions.parse(data, where="config.toml")
