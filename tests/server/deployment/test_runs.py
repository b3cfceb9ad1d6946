"""Runs whose app is lost, and the caretaker that lets them go on."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from kits import write_kits
from tabular_cohort import write_ward

from medfusion.atomic_files import write_json
from medfusion.config import load_config
from medfusion.errors import FederationError
from medfusion.federation.kit import ServerKit
from server.deployment import caretaker as caretaker_module
from server.deployment.caretaker import Caretaker
from server.deployment.runs import Runs
from server.run_lock import was_killed, working_on

APP = """
import sys
from pathlib import Path
from server.run_lock import working_on
with working_on(Path(sys.argv[1]), int(sys.argv[2])):
    print("at work", flush=True)
    sys.stdin.read()
"""


class FakeFlower:
    """Knows of runs what a test tells it."""

    def __init__(self):
        self.told = {}
        self.stopped = []

    def start_run(self, *, config, out, signature):
        number = 100 + len(self.told)
        self.told[number] = {"status": "running", "status-details": ""}
        return number

    def stop_run(self, number):
        self.stopped.append(number)
        self.told[number] = {"status": "finished:stopped", "status-details": ""}

    def runs(self):
        return self.told


@pytest.fixture
def flower():
    return FakeFlower()


@pytest.fixture
def runs(tmp_path, flower):
    config = write_ward(tmp_path / "ward")
    kits = write_kits(tmp_path / "federation", config.parent / "task.toml", ["north"])
    runs = Runs(ServerKit.read(kits / "server"), flower)
    runs.submit(load_config(config, ["run.name=ward"]))
    return runs


def started(folder: Path, number: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", APP, str(folder), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"at work\n"
    return process


def end(process, how=None):
    if how:
        process.send_signal(how)
    process.communicate()


def test_an_app_that_was_killed_goes_on_at_once(runs, flower):
    folder = runs.folder("ward-1")
    process = started(folder, 100)
    assert runs.resume_crashed() == []
    end(process, signal.SIGKILL)
    state = runs.state("ward-1", flower.runs())
    assert (state.status, state.why) == ("crashed", "it was killed")
    assert runs.resume_crashed() == ["ward-1"]
    assert flower.stopped == [100]  # Flower still takes it for alive
    assert runs.resume_crashed() == []
    assert json.loads((folder / "run.json").read_text())["flower_runs"] == [100, 101]


def test_an_app_that_ended_was_not_killed(runs):
    folder = runs.folder("ward-1")
    end(started(folder, 100))
    assert not was_killed(folder, 100)
    end(started(folder, 100), signal.SIGKILL)
    assert was_killed(folder, 100)
    assert not was_killed(folder, 101)  # the next one has not begun to work


def test_a_second_app_waits_for_the_first(runs):
    folder = runs.folder("ward-1")
    first = started(folder, 100)
    entered = threading.Event()

    def second():
        with working_on(folder, 101):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.2)
    end(first)
    assert entered.wait(20)
    thread.join()


def test_an_app_that_is_killed_in_one_round_again_and_again_fails(runs, flower):
    folder = runs.folder("ward-1")
    for number in (100, 101, 102, 103):
        end(started(folder, number), signal.SIGKILL)
        runs.resume_crashed()
    state = runs.state("ward-1", flower.runs())
    assert state.status == "failed"
    assert "lost 3 times in this round" in state.why


def test_a_look_from_before_the_last_start_calls_no_run_failed(runs, flower):
    before = dict(flower.runs())
    folder = runs.folder("ward-1")
    for number in (100, 101, 102):
        end(started(folder, number), signal.SIGKILL)
        runs.resume_crashed()
    assert runs.state("ward-1", before).status == "crashed"


RAISED = "ServerApp failed with exception: "


@pytest.mark.parametrize(
    "told",
    [
        "Server error '500 Internal Server Error' for url 'https://localhost/v1'",
        str(ObjectPushError("0" * 64, 1, "a-session")),
    ],
)
def test_an_app_that_met_an_error_of_the_server_goes_on(runs, flower, told):
    flower.told[100] = {"status": "finished:failed", "status-details": f"{RAISED}{told}"}
    assert runs.state("ward-1", flower.runs()).status == "crashed"
    assert runs.resume_crashed() == ["ward-1"]


def test_an_app_that_raised_stays_failed(runs, flower):
    told = f"{RAISED}expected 3 sites, found 2"
    flower.told[100] = {"status": "finished:failed", "status-details": told}
    state = runs.state("ward-1", flower.runs())
    assert (state.status, state.why) == ("failed", "expected 3 sites, found 2")
    assert runs.resume_crashed() == []


def test_a_site_cannot_have_a_failed_run_started_again_by_its_words(runs, flower):
    told = f"{RAISED}expected 3 sites, found 2; ward_1: {RAISED}Server error '500 Internal'"
    flower.told[100] = {"status": "finished:failed", "status-details": told}
    assert runs.state("ward-1", flower.runs()).status == "failed"
    assert runs.resume_crashed() == []


def test_a_damaged_run_keeps_no_other_from_going_on(runs, flower, tmp_path):
    runs.submit(load_config(tmp_path / "ward" / "config.toml", ["run.name=other"]))
    for number in flower.told:
        flower.told[number] = {"status": "finished:failed", "status-details": "No heartbeat"}
    (runs.folder("other-1") / "run.json").write_text("{")
    assert runs.resume_crashed() == ["ward-1"]


@pytest.mark.parametrize(
    "error", [FederationError("away"), OSError(28, "No space left on device"), KeyError("sites")]
)
def test_the_caretaker_outlasts_what_fails(monkeypatch, error):
    monkeypatch.setattr(caretaker_module, "_LOOK_SECONDS", 0.01)
    looks, ended = [], threading.Event()

    class Registry:
        def bring_up_to_date(self):
            looks.append("nodes")
            if len(looks) > 2:
                ended.set()
            raise error

    class NoRuns:
        def resume_crashed(self):
            looks.append("runs")
            return []

    Caretaker(Registry(), NoRuns()).run(ended)
    assert looks == ["nodes", "runs", "nodes"]


def test_a_run_that_the_server_did_not_take_is_not_started_later(runs, flower, tmp_path):
    def away(**_):
        raise FederationError("away")

    flower.start_run = away
    with pytest.raises(FederationError, match="away"):
        runs.submit(load_config(tmp_path / "ward" / "config.toml", ["run.name=other"]))
    assert runs.names() == ["ward-1"]


def test_a_look_in_the_middle_of_a_submission_waits(runs, flower, tmp_path):
    begun, go, start = threading.Event(), threading.Event(), flower.start_run

    def slow(**arguments):
        begun.set()
        assert go.wait(20)
        return start(**arguments)

    flower.start_run = slow
    config = load_config(tmp_path / "ward" / "config.toml", ["run.name=other"])
    submitting = threading.Thread(target=runs.submit, args=(config,))
    submitting.start()
    assert begun.wait(20)
    flower.start_run = start
    looking = threading.Thread(target=runs.resume_crashed)
    looking.start()
    looking.join(0.3)
    assert looking.is_alive()
    go.set()
    submitting.join()
    looking.join()
    record = json.loads((runs.folder("other-1") / "run.json").read_text())
    assert len(record["flower_runs"]) == 1


def test_stop_ends_every_app_of_a_run_and_resume_signs_nothing(runs, flower, tmp_path):
    folder = runs.folder("ward-1")
    record = json.loads((folder / "run.json").read_text())
    first = record["flower_runs"]
    extra = flower.start_run(config=None, out=None, signature="")
    write_json(folder / "run.json", record | {"flower_runs": [*first, extra]}, durable=False)
    runs.stop("ward-1")
    assert flower.stopped == [*first, extra]
    (tmp_path / "federation" / "kits" / "server" / "signing.key").unlink()
    runs.resume("ward-1")
    assert runs.state("ward-1", flower.runs()).status == "running"
