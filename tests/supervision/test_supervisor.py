"""The supervisor with real programs: restarts, clean ends, what is left behind."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from medfusion.errors import UsageError
from medfusion.supervision import supervisor as module
from medfusion.supervision.monitor import Monitor
from medfusion.supervision.supervisor import Program, Supervisor

STAYS = (
    "import time, pathlib, os; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(600)"
)
LEAVES_A_CHILD = """
import pathlib, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
)
pathlib.Path("orphan").write_text(str(child.pid))
"""
DEAF = """
import pathlib, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def program(code: str, **options) -> Program:
    return Program(name="p", command=(sys.executable, "-c", code), **options)


class Running:
    """A supervisor in a thread of this process."""

    def __init__(self, folder: Path, *programs: Program) -> None:
        self.supervisor = Supervisor(programs, folder=folder)
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.supervisor.run, args=(self.ended,))

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def wait_for(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to be")


def number_in(path: Path):
    return wait_for(lambda: path.exists() and path.read_text() and int(path.read_text()))


def lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_program_that_dies_comes_back_and_ends_with_the_supervisor(tmp_path):
    with Running(tmp_path, program(STAYS)) as running:
        first = number_in(tmp_path / "pid")
        assert running.supervisor.up == {"p": True}
        os.kill(first, signal.SIGKILL)
        (tmp_path / "pid").unlink()
        second = number_in(tmp_path / "pid")
        assert second != first
        assert running.supervisor.restarts == {"p": 1}
    assert not lives(second)


def test_a_program_that_keeps_dying_is_started_less_and_less_often(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_BACKOFF", 0.2)
    code = "import pathlib, time; p = pathlib.Path('t'); p.open('a').write(f'{time.time()}\\n')"
    with Running(tmp_path, program(code)):
        wait_for(
            lambda: (tmp_path / "t").exists() and len((tmp_path / "t").read_text().split()) > 3
        )
    starts = [float(text) for text in (tmp_path / "t").read_text().split()]
    assert starts[3] - starts[2] > 1.5 * (starts[1] - starts[0])


def test_a_program_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.5)
    with Running(tmp_path, program(DEAF)):
        pid = number_in(tmp_path / "pid")
    assert not lives(pid)


def test_what_a_program_left_behind_is_ended_too(tmp_path):
    code = "import sys; from test_supervisor import *; end_after_orphan(sys.argv[1])"
    script = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert script.returncode == 0, script.stderr
    assert not lives(int((tmp_path / "orphan").read_text()))


def end_after_orphan(folder: str) -> None:
    """Run in a process of its own, since it ends every child that it finds."""
    with Running(Path(folder), program(LEAVES_A_CHILD)):
        orphan = number_in(Path(folder) / "orphan")
        time.sleep(0.5)
        assert lives(orphan)


def test_programs_end_when_the_supervisor_is_killed(tmp_path):
    code = (
        "import sys, threading, pathlib; from test_supervisor import *; "
        "Supervisor([program(STAYS)], folder=pathlib.Path(sys.argv[1])).run(threading.Event())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent
    )
    pid = number_in(tmp_path / "pid")
    process.kill()
    process.wait()
    wait_for(lambda: not lives(pid))


def test_what_cannot_be_started_is_refused_by_name(tmp_path):
    missing = Program(name="p", command=("/no/such/program",))
    with pytest.raises(UsageError, match="/no/such/program"):
        Supervisor([missing], folder=tmp_path).run(threading.Event())
    nobody = program(STAYS, user="no-such-user")
    with pytest.raises(UsageError, match="no-such-user"):
        Supervisor([nobody], folder=tmp_path).run(threading.Event())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_program_runs_as_the_user_named():
    target = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    target.chmod(0o777)
    command = ("/bin/sh", "-c", "id -u > id; sleep 600")
    try:
        with Running(target, Program(name="p", command=command, user="nobody")):
            assert number_in(target / "id") == pwd.getpwnam("nobody").pw_uid
    finally:
        shutil.rmtree(target)


def test_a_program_that_keeps_dying_is_not_told_to_be_well(tmp_path):
    with Running(tmp_path, program(STAYS)) as running:
        first = number_in(tmp_path / "pid")
        assert running.supervisor.steady == {"p": True}
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: running.supervisor.restarts == {"p": 1} and running.supervisor.up["p"])
        assert running.supervisor.steady == {"p": False}
        wait_for(lambda: running.supervisor.steady == {"p": True})


def test_the_monitor_tells_what_runs_and_what_does_not(tmp_path):
    with Running(tmp_path, program(STAYS)) as running:
        port = Monitor(running.supervisor, lambda: {"link_connected": 1.0}).start(0)
        number_in(tmp_path / "pid")
        assert fetch(port, "healthz") == (200, "ok\n")
        metrics = fetch(port, "metrics")[1]
        assert 'medfusion_program_up{program="p"} 1.0' in metrics
        assert "medfusion_link_connected 1.0" in metrics
        assert fetch(port, "elsewhere")[0] == 404
        with pytest.raises(UsageError, match="monitor-port"):
            Monitor(running.supervisor, dict).start(port)
    assert fetch(port, "healthz") == (503, "not steady: p\n")


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
