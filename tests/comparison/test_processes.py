import os
import signal
import time
from pathlib import Path

import pytest

from medfusion.comparison.processes import share_cores, side_by_side
from medfusion.comparison.trials import Trial
from medfusion.config import RunConfig
from medfusion.errors import DataError, FederationError

CONFIG = RunConfig.parse({"run": {"name": "r", "task": "task.toml"}}, where="test")


def trials(count: int) -> list[Trial]:
    return [Trial(f"t{number}", "local", CONFIG, ()) for number in range(count)]


def names(found) -> list[str]:
    return sorted(trial.name for trial in found)


def test_every_trial_is_done_once_on_its_share_of_the_cores(tmp_path):
    cores = os.sched_getaffinity(0)

    def work(trial: Trial) -> None:
        own = os.sched_getaffinity(0)
        assert own <= cores
        with (tmp_path / trial.name).open("x") as file:
            file.write(f"{os.getpid()} {len(own)}")

    assert names(side_by_side(trials(5), work, at_once=2)) == [f"t{n}" for n in range(5)]
    written = [(tmp_path / f"t{n}").read_text().split() for n in range(5)]
    assert len({process for process, _ in written} - {str(os.getpid())}) == 5
    assert {int(count) for _, count in written} <= {-(-len(cores) // 2), len(cores) // 2}
    assert os.sched_getaffinity(0) == cores


def test_no_more_run_at_once_than_asked_for(tmp_path):
    def work(trial: Trial) -> None:
        (tmp_path / "busy").touch(exist_ok=False)
        time.sleep(0.05)
        (tmp_path / "busy").unlink()

    assert len(list(side_by_side(trials(4), work, at_once=1))) == 4


def test_the_first_error_ends_the_others(tmp_path):
    def work(trial: Trial) -> None:
        if trial.name == "t1":
            raise DataError("the table is torn")
        (tmp_path / trial.name).write_text(str(os.getpid()))
        time.sleep(60)

    with pytest.raises(DataError, match="the table is torn"):
        list(side_by_side(trials(2), work, at_once=2))
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_what_finished_before_an_error_was_yielded():
    def work(trial: Trial) -> None:
        if trial.name == "t2":
            raise ValueError("a defect")

    seen = []
    with pytest.raises(FederationError, match="run t2: failed unexpectedly"):  # noqa: PT012
        for trial in side_by_side(trials(4), work, at_once=1):
            seen.append(trial.name)
    assert seen == ["t0", "t1"]


def test_a_killed_process_is_reported():
    def work(trial: Trial) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(FederationError, match="run t0: its process ended unexpectedly"):
        list(side_by_side(trials(1), work, at_once=2))


def test_a_run_may_start_processes_of_its_own(tmp_path: Path):
    def work(trial: Trial) -> None:
        import multiprocessing

        child = multiprocessing.get_context("fork").Process(target=(tmp_path / "done").touch)
        child.start()
        child.join()

    assert len(list(side_by_side(trials(1), work, at_once=2))) == 1
    assert (tmp_path / "done").exists()


def test_cores_are_shared_out():
    assert share_cores([0, 1], 4) == [{0}, {1}]
    assert share_cores([3, 5, 6, 7, 8], 2) == [{3, 6, 8}, {5, 7}]
    assert share_cores([0, 1, 2], 1) == [{0, 1, 2}]
