"""A model's ONNX file gives the logits that the model gives, and says how to feed it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_models import write_model
from typer.testing import CliRunner
from volumes import volume_task

from medfusion.cli.main import _cli
from medfusion.data.encode import encode_tabular
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection
from medfusion.errors import MedFusionError, UsageError
from medfusion.evaluation.calibration import calibrate
from medfusion.export import onnx_network
from medfusion.export.onnx_files import export_onnx
from medfusion.export.onnx_network import ExportError, open_session, random_inputs, run_session
from medfusion.models.options import (
    HyperFusionOptions,
    LogisticOptions,
    MdfNetOptions,
    MedFusionNetOptions,
)
from medfusion.models.saved import load_model

TASK = Task.parse(
    {
        "task": {"name": "ward", "kind": "multilabel"},
        "image": {"size": [32, 32]},
        "text": {"max_tokens": 9},
        "features": {
            "age": {"kind": "numeric", "low": 0, "high": 120, "unit": "year"},
            "sex": {"kind": "categorical", "values": ["F", "M", "X"]},
            "smoker": {"kind": "binary"},
        },
        "labels": {"names": ["icu", "died"]},
    },
    where="test",
)
SELECTION = Selection.from_json(
    {
        "top_n": 2,
        "thresholds": [
            {"feature": "age", "label": "icu", "value": 65, "direction": "above", "score": 0.4},
            {
                "feature": "sex",
                "label": "died",
                "category": "M",
                "direction": "below",
                "score": 0.1,
            },
        ],
    },
    TASK,
)
CASES = {
    "medfusion_net": (MedFusionNetOptions(size="tiny"), TASK),
    "hyperfusion": (HyperFusionOptions(width=4, stages=2), TASK),
    "volumes": (HyperFusionOptions(width=4, stages=2, fusion="daft"), volume_task()),
}


@pytest.fixture(autouse=True)
def few_threads(one_thread: None) -> None:
    """Share the cores."""


@pytest.mark.parametrize(("options", "task"), CASES.values(), ids=CASES.keys())
def test_onnx_gives_the_logits_of_the_model_for_any_batch(tmp_path: Path, options, task) -> None:
    selection = SELECTION if task is TASK else None
    folder = write_model(tmp_path / "model", options, task, selection=selection)
    written = export_onnx(folder, folder / "model.onnx")
    assert written.distance <= 1e-4
    saved = load_model(folder)
    session = open_session(folder / "model.onnx", threads=1)
    about = json.loads((folder / "onnx.json").read_text())
    for rows in (1, 2, 7):
        inputs = random_inputs(saved, rows, seed=100 + rows)
        with torch.inference_mode():
            expected = saved.module(inputs).numpy()
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(run_session(session, inputs), expected, rtol=0, atol=1e-4)
    assert {i.name: ["batch", *i.shape[1:]] for i in session.get_inputs()} == {
        name: told["shape"] for name, told in about["inputs"].items()
    }
    assert about["outputs"]["logits"]["labels"] == list(task.labels.names)
    assert about["task_sha256"] == task.sha256
    assert about["calibration"] is None


def test_columns_made_by_the_description_alone_are_those_of_the_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path, LogisticOptions(), TASK, selection=SELECTION)
    fitted = calibrate(
        np.ones((2, 2, 8)),
        TASK.labels.names,
        method="temperature",
        exclusive=False,
        sensitivity=None,
        coverage=0.9,
    )
    kept = fitted.model_copy(update={"test": {"sites": {"north": {"coverage": 0.5}}}})
    (folder / "calibration.json").write_text(kept.model_dump_json())
    export_onnx(folder, folder / "sub" / "ward.onnx")
    about = json.loads((folder / "sub" / "ward.onnx.json").read_text())
    assert about["calibration"] == fitted.model_dump(mode="json")
    told = about["preprocessing"]["tabular"]
    raw = [{"age": 66.0, "sex": "M", "smoker": 1}, {"age": None, "sex": "F", "smoker": None}]
    made = np.zeros((2, len(told["columns"]), len(told["last_axis"])), np.float32)
    for row, study in enumerate(raw):
        for number, column in enumerate(told["columns"]):
            value = study[column["feature"]]
            made[row, number, 1] = value is None
            made[row, number, 2] = column["selected"]
            if value is None or not column["selected"]:
                continue
            if column["kind"] == "numeric":
                share = (value - column["low"]) / (column["high"] - column["low"])
                made[row, number, 0] = 2 * share - 1
            elif column["kind"] == "categorical":
                made[row, number, 0] = value == column["value"]
            for threshold in told["thresholds"]:
                if threshold["feature"] != column["feature"]:
                    continue
                if threshold["category"] not in (None, column.get("value")):
                    continue
                cut = threshold["value"]
                above = value == column["value"] if cut is None else value > cut
                side = 1 if above == (threshold["direction"] == "above") else -1
                made[row, number, told["last_axis"].index(threshold["label"])] = side
    features = np.array([[66.0, 1, 1], [np.nan, 0, np.nan]])
    np.testing.assert_allclose(made, encode_tabular(features, TASK, SELECTION), atol=1e-6)


def boxes_task() -> Task:
    return Task.parse(
        {
            "task": {"name": "boxes", "kind": "detection"},
            "image": {"size": [64, 64]},
            "labels": {"names": ["nodule"]},
        },
        where="test",
    )


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        (MdfNetOptions(size="tiny"), boxes_task(), "proposals, non-maximum suppression"),
        (
            HyperFusionOptions(width=4, stages=2, generated=("head1", "image.stages.1.conv1")),
            TASK,
            r"'image\.stages\.1\.conv1'.*convolution of 3x3.*one size of batch",
        ),
    ],
)
def test_a_part_that_onnx_cannot_hold_is_named(tmp_path: Path, options, task, message) -> None:
    folder = write_model(tmp_path, options, task)
    with pytest.raises(ExportError, match=message):
        export_onnx(folder, folder / "model.onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_a_file_with_other_logits_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    folder = write_model(tmp_path, LogisticOptions(), TASK)
    out = folder / "model.onnx"
    out.write_bytes(b"an earlier one")
    real = onnx_network.run_session

    def wrong(session, inputs):
        return real(session, inputs) + 2e-4 * (len(inputs["tabular"]) == 3)

    monkeypatch.setattr(onnx_network, "run_session", wrong)
    with pytest.raises(ExportError, match=r"differ from PyTorch's by 0\.0002"):
        export_onnx(folder, out)
    assert out.read_bytes() == b"an earlier one"
    assert not (folder / "onnx.json").exists()


def test_no_file_of_the_model_or_its_run_is_written_over(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LogisticOptions(), TASK)
    (tmp_path / "summary.json").write_text("of the run")
    before = {path: path.read_bytes() for path in (*folder.iterdir(), tmp_path / "summary.json")}
    for out in (folder / "calibration.onnx", tmp_path / "summary.onnx"):
        written = export_onnx(folder, out)
        assert written.description == out.with_name(f"{out.name}.json")
        assert json.loads(written.description.read_text())["schema"] == 1
    assert {path: path.read_bytes() for path in before} == before
    assert not (folder / "calibration.json").exists()


@pytest.mark.parametrize("failing", ["description", "onnx"])
def test_one_of_two_files_is_not_written_alone(tmp_path: Path, monkeypatch, failing: str) -> None:
    folder = write_model(tmp_path / "model", LogisticOptions(), TASK)
    out, description = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    earlier, other = (description, out) if failing == "onnx" else (out, description)
    earlier.write_text("an earlier one")
    other.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        export_onnx(folder, out)
    other.rmdir()
    monkeypatch.setattr("medfusion.export.onnx_files.describe", lambda *told: {"no number": np.nan})
    with pytest.raises(ValueError, match="JSON"):
        export_onnx(folder, out)
    assert earlier.read_text() == "an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"model", earlier.name}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", LogisticOptions(), TASK)
    run = CliRunner().invoke
    result = run(_cli, ["export", str(folder), "--format", "onnx"])
    assert result.exit_code == 0, result.output
    assert "differ from PyTorch's by at most" in result.output
    assert {"model.onnx", "onnx.json"} < {path.name for path in folder.iterdir()}
    wrong = run(_cli, ["export", str(folder), "--out", str(tmp_path / "x.pt")])
    assert isinstance(wrong.exception, UsageError)
    assert run(_cli, ["export", str(folder), "--format", "tflite"]).exit_code == 2
    nothing = run(_cli, ["export", str(tmp_path / "nothing")])
    assert isinstance(nothing.exception, MedFusionError)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = run(_cli, ["export", str(folder)])
    assert isinstance(missing.exception, UsageError)
    assert 'pip install "medfusion[export]"' in str(missing.exception)
