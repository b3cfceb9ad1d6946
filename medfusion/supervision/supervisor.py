"""Starts programs, restarts those that end, and leaves none behind.

It is what `medfusion site start` and `medfusion server start` do in the foreground; systemd or a
container engine needs to look after that one process only.
"""

import ctypes
import logging
import os
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from medfusion.errors import UsageError

log = logging.getLogger("medfusion.supervisor")

_FIRST_BACKOFF, _LAST_BACKOFF = 1.0, 60.0  # seconds before a program is started again
_STEADY_SECONDS = 120.0  # a program that ran this long begins anew with the first back-off
_GRACE_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_KILL_SECONDS = 0.02
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program to keep running.

    Attributes
    ----------
    environment
        Variables beside those of this process.
    user
        OS user that it runs as, with that user's groups; None: this one.
    log
        File that its output goes to; None: that of this process.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    log: Path | None = None


class Supervisor:
    """Keeps programs running; each leads a process group of its own.

    Parameters
    ----------
    programs
        Started in this order, ended in the reverse one.
    folder
        Where they run. Not the caller's folder, from which they might import modules.
    """

    def __init__(self, programs: Sequence[Program], *, folder: Path) -> None:
        self._slots = [_Slot(program) for program in programs]
        self._folder = folder
        self._not_ours: set[int] = set()

    @property
    def up(self) -> dict[str, bool]:
        """Whether each program runs."""
        return {slot.program.name: slot.alive for slot in self._slots}

    @property
    def steady(self) -> dict[str, bool]:
        """Whether each program runs, and has not just been started again."""
        return {slot.program.name: slot.steady for slot in self._slots}

    @property
    def restarts(self) -> dict[str, int]:
        """How often each program was started again."""
        return {slot.program.name: slot.restarts for slot in self._slots}

    def run(self, ended: threading.Event, *, each_look: Callable[[], None] = lambda: None) -> None:
        """Keep the programs running until ``ended`` is set, then end them and all they started.

        Raises
        ------
        UsageError
            If a program cannot be started at all; the others are ended.
        """
        self._not_ours = _children()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a dead program leaves is ours to end
        try:
            while not ended.is_set():
                for slot in self._slots:
                    slot.look(self._folder)
                each_look()
                ended.wait(_LOOK_SECONDS)
        finally:
            self._end()

    def _end(self) -> None:
        for slot in reversed(self._slots):
            slot.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        while any(slot.alive for slot in self._slots) and time.monotonic() < deadline:
            # What a program that has ended left behind may be what another one waits for.
            _signal(_children() - self._not_ours - self._pids(), signal.SIGTERM)
            time.sleep(_LOOK_SECONDS)
        deadline = time.monotonic() + _GRACE_SECONDS
        while left := _children() - self._not_ours:
            if time.monotonic() > deadline:  # one that waits for a dead disk cannot be killed
                log.error("still there: processes %s", ", ".join(map(str, sorted(left))))
                return
            _signal(left, signal.SIGKILL)
            time.sleep(_KILL_SECONDS)
            for slot in self._slots:
                slot.reap()
            for pid in left:
                _reap(pid)

    def _pids(self) -> set[int]:
        return {slot.pid for slot in self._slots}


class _Slot:
    """One program with its process."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0
        self._backoff = _FIRST_BACKOFF

    @property
    def pid(self) -> int:
        """The process; 0 if there is none."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def steady(self) -> bool:
        """Whether it runs, and if it was started again, has run as long as it once waited."""
        ran = time.monotonic() - self._started
        return self.alive and (not self.restarts or ran >= min(self._backoff, _STEADY_SECONDS))

    def look(self, folder: Path) -> None:
        """Start the program if it is due; take note if it has ended."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start(folder)
            return
        code = self._process.poll()
        if code is None:
            return
        if now - self._started >= _STEADY_SECONDS:
            self._backoff = _FIRST_BACKOFF
        log.warning("%s ended with %d; again in %.0f s", self.program.name, code, self._backoff)
        self._kill_group()  # what it started would hold its ports and locks
        self._process = None
        self.restarts += 1
        self._put_off()

    def _put_off(self) -> None:
        self._due = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, _LAST_BACKOFF)

    def terminate(self) -> None:
        if self._process is not None and self.alive:
            self._process.terminate()

    def reap(self) -> None:
        if self._process is not None:
            self._process.poll()

    def _start(self, folder: Path) -> None:
        program = self.program
        uid, gid, groups = _identity(program.user)
        try:
            with program.log.open("ab") if program.log else nullcontext() as output:
                self._process = subprocess.Popen(
                    program.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **program.environment},
                    cwd=folder,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                    user=uid,
                    group=gid,
                    extra_groups=groups,
                )
        except OSError as error:
            told = f"{program.command[0]}: cannot be started ({error.strerror})"
            if not self.restarts:
                raise UsageError(told) from None
            log.warning("%s", told)
            self._put_off()
            return
        self._started = time.monotonic()

    def _kill_group(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _identity(user: str | None) -> tuple[int | None, int | None, list[int] | None]:
    """Return the ids of a user, its group and all its groups; None leaves them as they are.

    Raises
    ------
    UsageError
        If there is no such user, or this process may not become it.
    """
    if user is None:
        return None, None, None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise UsageError(f"user {user!r}: no such user on this machine") from None
    if os.geteuid() != 0 and entry.pw_uid != os.geteuid():
        raise UsageError(f"user {user!r}: only root may start a program as another user")
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(user, entry.pw_gid)


def _die_with_parent() -> None:
    """End with the supervisor, however that ends: an orphan would hold ports and locks."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _children() -> set[int]:
    """Return the processes whose parent is this one, ended or not."""
    own, found = os.getpid(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == own:
            found.add(int(folder.name))
    return found


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
