import json
from pathlib import Path

import pytest
from tabular_cohort import write_ward

from client.node.approvals import Approvals, runs_of
from client.node.run_summary import RunSummary, summarise
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.task import Task
from medfusion.errors import FederationError, UsageError, WaitingError
from medfusion.transport.requests import RunSettings
from server.run_state import run_settings

Run = tuple[RunSettings, RunSummary]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = load_config(write_ward(tmp_path / "ward", patients=4))
    task = Task.load(config.run.task)
    settings = run_settings(config, task)
    return settings, summarise(settings, task, None)


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return runs_of(tmp_path / "state")


def see(approvals: Approvals, run: Run, run_id: str) -> None:
    settings = run[0].model_copy(update={"run_id": run_id})
    with pytest.raises(WaitingError):
        approvals.require(settings, ask=True, summary=lambda: run[1])


def test_a_record_is_a_file_of_plain_data(tmp_path: Path, approvals: Approvals, run: Run) -> None:
    see(approvals, run, "a")
    path = tmp_path / "state" / "runs" / "a.json"
    record = json.loads(path.read_text())
    assert (record["schema"], record["run_id"], record["status"]) == (1, "a", "waiting")
    assert (record["decided"], record["decided_by"]) == (None, None)
    assert record["settings"] == run[0].model_copy(update={"run_id": "a"}).model_dump(mode="json")
    assert record["summary"]["epsilon"] is None
    approvals.decide("a", "approved", by="ada")
    record = json.loads(path.read_text())
    assert (record["status"], record["decided_by"]) == ("approved", "ada")
    assert record["decided"] >= record["first_seen"]


def test_a_run_is_named_by_its_beginning_if_only_one_fits(approvals: Approvals, run: Run) -> None:
    for run_id in ("icu", "icu-12", "icu-13", "lung"):
        see(approvals, run, run_id)
    assert approvals.decide("l", "denied", by="ada").run_id == "lung"
    assert approvals.decide("icu-12", "approved", by="ada").run_id == "icu-12"
    assert approvals.decide("icu", "approved", by="ada").run_id == "icu"
    for vague, message in (("ic", "several"), ("x", "no such run"), ("", "no such run")):
        with pytest.raises(UsageError, match=rf"{message}.*expected one of: icu"):
            approvals.decide(vague, "approved", by="ada")
    statuses = {record.run_id: record.status for record in approvals.all()}
    assert statuses == {
        "icu": "approved",
        "icu-12": "approved",
        "icu-13": "waiting",
        "lung": "denied",
    }


@pytest.mark.parametrize("run_id", ["../x", "a/b", "..", ""])
def test_a_run_id_is_no_path(tmp_path: Path, approvals: Approvals, run: Run, run_id: str) -> None:
    settings = run[0].model_copy(update={"run_id": run_id})
    with pytest.raises(FederationError, match="run_id"):
        approvals.require(settings, ask=False, summary=lambda: run[1])
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("damage", ["", "{}", "[]", "other"])
def test_a_damaged_record_is_not_taken_for_a_new_run(
    tmp_path: Path, approvals: Approvals, run: Run, damage: str
) -> None:
    see(approvals, run, "a")
    approvals.decide("a", "denied", by="ada")
    path = tmp_path / "state" / "runs" / "a.json"
    text = path.read_text().replace('"run_id": "a"', '"run_id": "b"') if damage else ""
    path.write_text(text if damage == "other" else damage)
    settings = run[0].model_copy(update={"run_id": "a"})
    with pytest.raises(FederationError, match=r"runs/a\.json .*damaged"):
        approvals.require(settings, ask=False, summary=lambda: run[1])


def test_a_decision_that_the_log_cannot_hold_does_not_count(
    tmp_path: Path, approvals: Approvals, run: Run
) -> None:
    see(approvals, run, "a")
    (tmp_path / "state" / "audit.jsonl").unlink()
    with pytest.raises(FederationError, match="not as it was left"):
        approvals.decide("a", "approved", by="ada")
    assert approvals.all()[0].status == "waiting"


def test_what_a_summary_says_of_other_runs(tmp_path: Path) -> None:
    path = write_ward(tmp_path / "ward", patients=4)
    overrides = ["selection.method=local", "strategy.name=qfedavg", "run.rounds=4"]
    config = load_config(path, [*overrides, "strategy.client_learning_rate=0.1"])
    task = Task.load(config.run.task)
    leaves = summarise(run_settings(config, task), task, None).leaves
    assert [(part.what, part.times) for part in leaves] == [
        ("model updates", 4),
        ("names of the columns selected", 4),
        ("training loss", 4),
        ("score histograms", len(config.evaluation_rounds())),
        ("score histograms of the calibration patients", 1),
    ]


def test_the_state_folder_is_closed_to_others(tmp_path: Path, approvals: Approvals) -> None:
    NodeState(tmp_path / "state")
    with pytest.raises(UsageError, match="none yet"):
        approvals.decide("a", "approved", by="ada")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
