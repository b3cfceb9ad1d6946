"""A model's card tells what the run's files tell, and says what they do not."""

import json
from pathlib import Path

from saved_models import write_model
from typer.testing import CliRunner

from medfusion.cli.main import _cli
from medfusion.data.task import Task
from medfusion.errors import DataError
from medfusion.models.options import LogisticOptions

TASK = Task.parse(
    {
        "task": {"name": "ward", "kind": "multilabel"},
        "features": {"age": {"kind": "numeric", "low": 0, "high": 120}},
        "labels": {"names": ["icu", "died"]},
    },
    where="test",
)
PLAN = {
    "patients_public": 61,
    "delta": 1e-5,
    "sample_rate": 0.25,
    "steps_per_round": 4,
    "rounds": 5,
    "max_grad_norm": 1.5,
    "noise_multiplier": 2.25,
    "epsilon": 7.654,
}
SUMMARY = {
    "schema": 1,
    "auroc_macro": 0.8125,
    "auroc": {"icu": 0.75, "died": None},
    "brier": 0.125,
    "rounds": 5,
    "seconds": 77.0,
    "seed": 3,
    "sites": {"north": {"patients": 61, "auroc_macro": 0.7, "epsilon": 7.654}},
}


def card(folder: Path) -> str:
    result = CliRunner().invoke(_cli, ["export", str(folder), "--format", "card"])
    assert result.exit_code == 0, result.output
    return (folder / "MODEL_CARD.md").read_text()


def test_a_private_run(tmp_path: Path) -> None:
    privacy = {"enabled": True, "simulated": False, "sites": {"north": PLAN}}
    folder = write_model(tmp_path / "model", LogisticOptions(), TASK, privacy=privacy)
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "config.toml").write_text('[strategy]\nname = "fedadam"\n')
    text = card(folder)
    for row in (
        "| north | 61 |",
        "| auroc_macro | 0.8125 |",
        "| auroc, icu | 0.75 |",
        "| auroc, died | undefined |",
        "| brier | 0.125 |",
        "| north | 0.7 |",
        "| north | 7.65 | 1e-5 | 2.25 | 1.5 | 0.25 | 20 |",
        "| rounds, seed | 5, 0 |",
        "| strategy | fedadam |",
        f"| task_sha256 | `{TASK.sha256}` |",
    ):
        assert row in text, row
    assert "e^epsilon" in text
    assert "not for diagnosis" in text
    assert "imulated" not in text
    assert "seconds" not in text
    assert "\n\n\n\n" not in text


def test_what_was_wanted_is_no_figure_and_nought_is_one(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LogisticOptions(), TASK)
    told = SUMMARY | {
        "calibration": {
            "method": "isotonic",
            "wanted_coverage": 0.9,
            "wanted_sensitivity": None,
            "ece_after": 0.0625,
            "coverage": None,
        },
        "sites": {"north": {"patients": 61, "auroc_macro": 0.0}, "south": {"patients": 9}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(told))
    text = card(folder)
    assert "wanted" not in text
    assert "| calibration, ece_after | 0.0625 |" in text
    assert "| calibration, coverage | undefined |" in text
    assert "| north | 0 |" in text
    assert "| south | undefined |" in text
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | {"calibration": None}))
    assert "| calibration" not in card(folder)


def test_simulated_privacy_and_none_are_called_so(tmp_path: Path) -> None:
    privacy = {"enabled": True, "simulated": True, "sites": {"north": PLAN}}
    text = card(write_model(tmp_path / "a", LogisticOptions(), TASK, privacy=privacy))
    assert "**Simulated**" in text
    assert "Unknown: there is no `summary.json`" in text
    assert "| north | 61 |" in text  # as the plan says
    text = card(write_model(tmp_path / "b", LogisticOptions(), TASK))
    assert "without differential privacy" in text
    assert "Hospitals: unknown" in text


def test_a_damaged_summary_is_an_error_and_the_old_card_stays(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LogisticOptions(), TASK)
    before = card(folder)
    (tmp_path / "summary.json").write_text("{")
    result = CliRunner().invoke(_cli, ["export", str(folder), "--format", "card"])
    assert isinstance(result.exception, DataError)
    assert (folder / "MODEL_CARD.md").read_text() == before
