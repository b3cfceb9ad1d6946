"""Programs that a system test starts, watches and ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_BIN = Path(sys.executable).parent
_TAIL = 4000  # characters of a log that a failure shows


class Processes:
    """Programs that a test starts under ``root``, each with a log; all of them end with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._logs = root / "logs"
        self._logs.mkdir()
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._may_end: set[str] = set()

    def start(
        self, name: str, *command: str | Path, may_end: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own, with a home of its own for Flower."""
        home = self.root / "home" / name
        home.mkdir(parents=True, exist_ok=True)
        if may_end:
            self._may_end.add(name)
        return self._popen(name, command, home)

    def run(self, name: str, *command: str | Path, home: Path, timeout: float) -> str:
        """Run a program to its end and return what it printed; fail with the logs if it fails."""
        process = self._popen(name, command, home)
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
        assert code == 0, f"{name} ended with {code} (None: no end in {timeout} s)\n{self.tails()}"
        return self.log(name)

    def wait_for(self, what: str, ready: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait until something holds, while every program that was started is alive."""
        deadline = time.monotonic() + timeout
        while not ready():
            ended = {name for name, process in self._started.items() if process.poll()}
            dead = sorted(ended - self._may_end)
            assert not dead, f"{dead} ended while waiting for {what}\n{self.tails()}"
            assert time.monotonic() < deadline, f"no {what} in {timeout} s\n{self.tails()}"
            time.sleep(0.1)

    def log(self, name: str) -> str:
        """Return what a program printed so far."""
        return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def tails(self, length: int = _TAIL) -> str:
        """Return the ends of all logs, for the message of a failure."""
        return "\n".join(f"--- {name}\n{self.log(name)[-length:]}" for name in self._started)

    def stop(self) -> dict[str, int | None]:
        """Ask every program to end, then kill what is left, children included; give exit codes."""
        for process in self._started.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 40  # a server gives what it started 20
        codes: dict[str, int | None] = {}
        for name, process in self._started.items():
            try:
                codes[name] = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                codes[name] = None
        while left := self.alive():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            for process in self._started.values():
                process.poll()
            time.sleep(0.1)
        return codes

    def alive(self) -> list[int]:
        """Return the processes that carry our folder in their environment, children included."""
        return self.pids("")

    def pids(self, word: str) -> list[int]:
        """Return those of our processes whose command holds a word."""
        marker = f"={self.root}/".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    marker in (folder / "environ").read_bytes()
                    and word.encode() in (folder / "cmdline").read_bytes()
                ):
                    found.append(int(folder.name))
            except OSError:  # ended meanwhile, or another user's
                continue
        return found

    def _popen(
        self, name: str, command: tuple[str | Path, ...], home: Path
    ) -> subprocess.Popen[bytes]:
        program, *arguments = command
        empty = self.root / "empty"
        empty.mkdir(exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:  # one that starts again goes on
            process = subprocess.Popen(
                [_BIN / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(home),
                cwd=empty,
                start_new_session=True,
            )
        self._started[name] = process
        return process


def _environment(home: Path) -> dict[str, str]:
    # What is installed runs, unless another work tree is under test (KEEP_PYTHONPATH).
    keep = "KEEP_PYTHONPATH" in os.environ
    inherited = {n: value for n, value in os.environ.items() if keep or n != "PYTHONPATH"}
    return inherited | {
        "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONUNBUFFERED": "1",
    }
