"""What TensorBoard and MLflow read of a run is what the run folder holds."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from tabular_cohort import write_ward
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medfusion.cli.compose import load_sites, run_federation
from medfusion.config import config_text, load_config
from medfusion.errors import ConfigError
from server import tracking
from server.tracking import Tracking, require_trackers

torch.set_num_threads(1)


def line(number: int) -> dict:
    return {
        "round": number,
        "update_norm": 0.5 * number,
        "seconds": 1.0,
        "bytes_up": 10,
        "bytes_down": 20,
        "sites": {
            "north": {"status": "ok", "seconds": 0.25},
            "south": {"status": "failed", "seconds": 9.0},
        },
        "metrics": {"auroc_macro": 0.1 * number, "auroc": {"ill, or dead?": None, "b": 0.75}},
    }


SUMMARY = {
    "schema": 1,
    "auroc_macro": 0.875,
    "auroc": {"ill": None, "dead": 0.5},
    "rounds": 3,
    "seed": 7,
    "selected": [],
    "sites": {"north": {"patients": 50, "epsilon": 7.5}},
}


def events(folder: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder / "tracking" / "tensorboard" / name))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def metrics(folder: Path, key: str) -> tuple[str, list[tuple[int, float]]]:
    client = MlflowClient(tracking_uri=(folder / "tracking" / "mlflow").resolve().as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'medfusion'")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, key)
    return run.info.status, [(each.step, each.value) for each in history]


def fail(message: str) -> None:
    raise AssertionError(message)


def track(folder: Path, lines: int, *, finish: bool) -> None:
    tracked = Tracking(("tensorboard", "mlflow"), folder, "mine", fail)
    rounds = [line(1), line(2), line(3)]
    for end in range(1, lines + 1):
        tracked.rounds(rounds[:end])
    if finish:
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        tracked.finish(folder / "summary.json")


def test_each_round_is_written_once_also_after_a_resumption(tmp_path: Path) -> None:
    track(tmp_path, 2, finish=False)
    assert metrics(tmp_path, "update_norm") == ("RUNNING", [(1, 0.5), (2, 1.0)])
    assert events(tmp_path, "mine")["update_norm"] == [(1, 0.5), (2, 1.0)]
    track(tmp_path, 3, finish=True)
    expected = [(1, 0.5), (2, 1.0), (3, 1.5)]
    found = events(tmp_path, "mine")
    assert found["update_norm"] == expected
    assert found["seconds_of/north"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    assert found["sites_ok"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert found["metrics/auroc/b"] == [(1, 0.75), (2, 0.75), (3, 0.75)]
    assert found["summary/auroc_macro"] == [(3, 0.875)]
    assert found["site/north/epsilon"] == [(3, 7.5)]
    assert not any("ill" in tag or "seed" in tag for tag in found)
    assert metrics(tmp_path, "update_norm") == ("FINISHED", expected)
    assert metrics(tmp_path, "site/north/epsilon")[1] == [(3, 7.5)]


def test_a_name_that_mlflow_forbids_is_changed(tmp_path: Path) -> None:
    tracked = Tracking(("mlflow",), tmp_path, "mine", fail)
    told = line(1)
    told["metrics"]["auroc"]["ill, or dead?"] = 0.5
    tracked.rounds([told])
    assert metrics(tmp_path, "metrics/auroc/ill_ or dead_")[1] == [(1, 0.5)]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch) -> None:
    def full(self, step, figures):
        raise OSError("disk full")

    monkeypatch.setattr(tracking._TensorBoard, "write", full)
    told: list[str] = []
    tracked = Tracking(("tensorboard", "mlflow"), tmp_path, "mine", told.append)
    tracked.rounds([line(1)])
    tracked.rounds([line(1), line(2)])
    assert len(told) == 1
    assert "disk full" in told[0]
    assert metrics(tmp_path, "update_norm")[1] == [(1, 0.5), (2, 1.0)]


def test_a_tracker_that_cannot_begin_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch) -> None:
    def full(place, run):
        raise OSError("disk full")

    monkeypatch.setitem(tracking._WRITERS, "tensorboard", full)
    told: list[str] = []
    tracked = Tracking(("tensorboard", "mlflow"), tmp_path, "mine", told.append)
    tracked.rounds([line(1)])
    assert told == ["run.tracking: tensorboard failed and is left out: disk full"]
    assert metrics(tmp_path, "update_norm")[1] == [(1, 0.5)]


def test_a_run_tracks_itself(tmp_path: Path) -> None:
    path = write_ward(tmp_path / "ward")
    config = load_config(path, ["run.tracking=tensorboard"])
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text(config_text(config))
    run_federation(config, load_sites(config), config_path=out / "config.toml", out=out)
    lines = [json.loads(row) for row in (out / "rounds.jsonl").read_text().splitlines()]
    found = events(out, "ward")
    told = [(each["round"], pytest.approx(each["metrics"]["auroc_macro"])) for each in lines]
    assert found["metrics/auroc_macro"] == told
    summary = json.loads((out / "summary.json").read_text())
    assert found["summary/auroc_macro"] == [(2, pytest.approx(summary["auroc_macro"]))]
    assert not (out / "tracking" / "mlflow").exists()


def test_a_tracker_that_is_not_here_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(tracking._PACKAGES, "mlflow", "mlflow_that_is_not_here")
    require_trackers(("tensorboard",))
    with pytest.raises(ConfigError, match=r"pip install \"medfusion\[tracking\]\""):
        require_trackers(("tensorboard", "mlflow"))
    with pytest.raises(ConfigError, match=r"run\.tracking"):
        load_config(write_ward(tmp_path), ["run.tracking=wandb"])
