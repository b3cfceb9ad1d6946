"""The runs of a coordinator: a folder for each, under the kit's ``runs``."""

import json
import logging
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfusion.atomic_files import make_folder, write_atomically, write_json
from medfusion.config import RunConfig, config_text, load_config
from medfusion.data.task import Task
from medfusion.errors import (
    ConfigError,
    FederationError,
    MedFusionError,
    UsageError,
    did_you_mean,
)
from medfusion.federation.kit import ServerKit
from medfusion.federation.signatures import SigningKey
from medfusion.folder_lock import one_at_a_time
from medfusion.transport.requests import run_content
from server.deployment.flower import Flower
from server.run_lock import was_killed
from server.run_state import SUMMARY, run_settings

log = logging.getLogger("medfusion.server")

RUNS = "runs"
_RECORD = "run.json"
_ALIVE = ("pending", "starting", "running")
# What Flower says of an app that raised; all else that fails was killed, or lost its machine.
_RAISED = "ServerApp failed with exception"
# Beginnings that blame the SuperLink: an error of its own, or a part of a message that it could not
# store, or had stored when it was killed, so that the app got no answer and sent it again, which
# Flower refuses. What comes later in the text may be a site's words.
_OF_THE_SERVER = (f"{_RAISED}: Server error '5", f"{_RAISED}: Failed to push object with ID")
_MOST_CRASHES = 3  # in a row without a new round


@dataclass(frozen=True)
class RunState:
    """How a run is: ``status`` is running, finished, failed, stopped or crashed; why, if failed."""

    name: str
    status: str
    round: int
    rounds: int
    why: str = ""


class Runs:
    """Submits, resumes and stops runs.

    Parameters
    ----------
    kit
        The server's.
    """

    def __init__(self, kit: ServerKit, flower: Flower) -> None:
        self._kit = kit
        self._flower = flower
        self._folder = kit.folder / RUNS

    def folder(self, name: str) -> Path:
        """Return the run folder of a run.

        Raises
        ------
        UsageError
            If there is no such run.
        """
        if name not in self.names():
            raise UsageError(f"no run {name!r} in {self._folder}{did_you_mean(name, self.names())}")
        return self._folder / name

    def names(self) -> list[str]:
        """Return the runs' names, sorted."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{_RECORD}"))

    def submit(self, config: RunConfig) -> str:
        """Sign a run's settings and start it; return its name.

        Raises
        ------
        ConfigError
            If the run is for another task than the kit.
        FederationError
            If the server does not take it.
        """
        self._check_task(config)
        number = 1
        while (self._folder / f"{config.run.name}-{number}").exists():
            number += 1
        folder = self._folder / f"{config.run.name}-{number}"
        make_folder(self._folder, mode=0o700)
        folder.mkdir()
        try:
            write_atomically(folder / "config.toml", config_text(config), durable=True)
            with self._alone(folder):
                self._start(folder, self._first_record(folder))
        except BaseException:
            shutil.rmtree(folder)  # nobody is to start it later
            raise
        return folder.name

    def resume(self, name: str) -> None:
        """Let a run go on after its last finished round.

        Raises
        ------
        UsageError
            If it is finished or runs.
        """
        folder = self.folder(name)
        with self._alone(folder):
            told = self._flower.runs()
            state = self.state(name, told)
            if state.status in ("running", "finished"):
                raise UsageError(f"run {name!r} is {state.status}: there is nothing to resume")
            record = self._record(folder)
            self._end_apps(record, told)
            self._start(folder, record | {"stopped": False, "crashes": {}})

    def stop(self, name: str) -> None:
        """End a run; what it has reached stays, and it can be resumed.

        Raises
        ------
        UsageError
            If it does not run.
        """
        folder = self.folder(name)
        with self._alone(folder):
            told = self._flower.runs()
            state = self.state(name, told)
            if state.status not in ("running", "crashed"):
                raise UsageError(f"run {name!r} is {state.status}: there is nothing to stop")
            record = self._record(folder)
            write_json(folder / _RECORD, record | {"stopped": True}, durable=True)
            self._end_apps(record, told)

    def state(self, name: str, told: dict[int, dict[str, Any]]) -> RunState:
        """Return how a run is; ``told`` is what Flower says of all of them."""
        folder = self.folder(name)
        record = self._record(folder)
        rounds = load_config(folder / "config.toml").run.rounds
        done = _rounds_done(folder)
        if (folder / SUMMARY).exists():
            return RunState(name, "finished", rounds, rounds)
        if record["stopped"]:
            return RunState(name, "stopped", done, rounds)
        number = record["flower_runs"][-1] if record["flower_runs"] else 0
        run = told.get(number, {})
        why = " ".join(str(run.get("status-details", "")).split())
        killed = was_killed(folder, number)
        if killed:
            why = "it was killed"
        elif run.get("status") in _ALIVE:
            return RunState(name, "running", done, rounds)
        if why.startswith(_RAISED) and not why.startswith(_OF_THE_SERVER):
            why = why.removeprefix(_RAISED).strip(": ")
            return RunState(name, "failed", done, rounds, why)
        started_since = bool(number) and number not in told
        if not started_since and record["crashes"].get(str(done), 0) >= _MOST_CRASHES:
            why = f"the coordinator's app was lost {_MOST_CRASHES} times in this round ({why})"
            return RunState(name, "failed", done, rounds, why)
        return RunState(name, "crashed", done, rounds, why or "the server does not know of it")

    def resume_crashed(self) -> list[str]:
        """Let runs go on whose app was killed or lost its machine; return their names."""
        unfinished = [name for name in self.names() if not self._is_finished(name)]
        told = self._flower.runs() if unfinished else {}
        return [name for name in unfinished if self._resume_if_crashed(name, told)]

    def _resume_if_crashed(self, name: str, told: dict[int, dict[str, Any]]) -> bool:
        """Return whether a run goes on; what is wrong with it keeps no other run from it."""
        try:
            folder = self.folder(name)
            with self._alone(folder):
                record = self._record(folder)
                if any(number not in told for number in record["flower_runs"][-1:]):
                    told = self._flower.runs()  # started since
                state = self.state(name, told)
                if state.status != "crashed":
                    return False
                self._end_apps(record, told)
                crashes = {str(state.round): record["crashes"].get(str(state.round), 0) + 1}
                self._start(folder, record | {"crashes": crashes})
        except (MedFusionError, OSError) as error:
            log.error("run %s cannot go on: %s", name, error)
            return False
        return True

    def _is_finished(self, name: str) -> bool:
        """Whether a run has its results, for which Flower need not be asked."""
        return (self._folder / name / SUMMARY).exists()

    def _alone(self, folder: Path) -> AbstractContextManager[None]:
        """Keep commands and the caretaker from deciding about a run at the same time."""
        return one_at_a_time(folder / "run.lock")

    def _end_apps(self, record: dict[str, Any], told: dict[int, dict[str, Any]]) -> None:
        """End every app of a run that Flower believes alive."""
        for number in record["flower_runs"]:
            if told.get(number, {}).get("status") in _ALIVE:
                self._flower.stop_run(number)

    def _first_record(self, folder: Path) -> dict[str, Any]:
        """Sign a run's settings, once: the key is needed for nothing that comes later."""
        config = load_config(folder / "config.toml")
        settings = run_settings(config, Task.load(config.run.task))
        key = SigningKey.read(self._kit.signing_key_file)
        signature = key.sign("run", run_content(self._kit.federation, settings))
        parts = {"flower_runs": [], "stopped": False, "crashes": {}, "signature": signature}
        return {"schema": 1, **parts}

    def _start(self, folder: Path, record: dict[str, Any]) -> None:
        write_json(folder / _RECORD, record, durable=True)
        number = self._flower.start_run(
            config=(folder / "config.toml").resolve(),
            out=folder.resolve(),
            signature=record["signature"],
        )
        record = record | {"flower_runs": [*record["flower_runs"], number]}
        write_json(folder / _RECORD, record, durable=True)

    def _check_task(self, config: RunConfig) -> None:
        found = Task.load(config.run.task).sha256
        if found != self._kit.task_sha256:
            raise ConfigError(
                f"{config.run.task}: the hospitals' kits hold another task (hash "
                f"{self._kit.task_sha256[:12]}, this one has {found[:12]}); submit a run for "
                f"{self._kit.task}, or provision the federation for this one"
            )

    def _record(self, folder: Path) -> dict[str, Any]:
        try:
            found = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        except ValueError:
            raise FederationError(f"{folder / _RECORD}: damaged; submit the run again") from None
        assert isinstance(found, dict)
        return found


def _rounds_done(folder: Path) -> int:
    try:
        return len((folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return 0
