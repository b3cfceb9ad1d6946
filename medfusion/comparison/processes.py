"""Runs trials side by side: each in a process of its own, on its share of the cores.

Small models gain little from a second thread and lose much where it has to wait, so two runs
of one thread finish long before one run of two threads after another. A process of its own
also keeps what a run starts (threads above all) out of the way of the next one's forks.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from medfusion.comparison.trials import Trial
from medfusion.errors import FederationError, MedFusionError
from medfusion.workers import end_with_parent

Outcome = MedFusionError | None


@dataclass(frozen=True)
class _Running:
    trial: Trial
    process: ForkProcess
    cores: frozenset[int]


def side_by_side(
    trials: Sequence[Trial], work: Callable[[Trial], None], *, at_once: int
) -> Iterator[Trial]:
    """Do ``work`` for each trial, ``at_once`` at a time, and yield trials as they finish.

    Raises
    ------
    MedFusionError
        The first that a trial raises; the others under way are ended.
    """
    free = share_cores(sorted(os.sched_getaffinity(0)), min(at_once, len(trials)))
    waiting = list(reversed(trials))
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and free:
                connection, started = _start(waiting.pop(), work, free.pop())
                running[connection] = started
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                done = running.pop(ready)
                _finish(ready, done)
                free.append(done.cores)
                yield done.trial
    finally:
        for one in running.values():
            one.process.terminate()
            one.process.join()


def share_cores(cores: Sequence[int], count: int) -> list[frozenset[int]]:
    """Deal cores into at most ``count`` shares whose sizes differ by one at most."""
    count = min(count, len(cores))
    return [frozenset(cores[turn::count]) for turn in range(count)]


def _start(
    trial: Trial, work: Callable[[Trial], None], cores: frozenset[int]
) -> tuple[Connection, _Running]:
    context = multiprocessing.get_context("fork")  # the studies in memory need no copy
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(trial, work, cores, theirs, os.getpid()))
    process.start()
    theirs.close()
    return ours, _Running(trial, process, cores)


def _finish(connection: Connection, done: _Running) -> None:
    """Take the outcome of a trial; raise what it raised."""
    try:
        outcome: Outcome = connection.recv()
    except EOFError:
        outcome = FederationError(
            f"run {done.trial.name}: its process ended unexpectedly (out of memory?); the same "
            "command goes on where it stopped"
        )
    done.process.join()
    connection.close()
    if outcome is not None:
        raise outcome


def _serve(
    trial: Trial,
    work: Callable[[Trial], None],
    cores: frozenset[int],
    connection: Connection,
    parent: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    end_with_parent(parent)
    os.sched_setaffinity(0, cores)
    outcome: Outcome = None
    try:
        work(trial)
    except MedFusionError as error:
        outcome = error
    except Exception:
        traceback.print_exc()
        outcome = FederationError(f"run {trial.name}: failed unexpectedly, see above")
    connection.send(outcome)
