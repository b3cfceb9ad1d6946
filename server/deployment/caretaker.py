"""What a coordinator's server looks after while it runs: who may take part, and crashed runs."""

import logging
import threading
import time
from collections.abc import Callable

from medfusion.errors import MedFusionError
from server.deployment.node_registry import NodeRegistry
from server.deployment.runs import Runs

log = logging.getLogger("medfusion.server")

_LOOK_SECONDS = 5.0
_CRASH_LOOK_SECONDS = 20.0  # asking Flower takes a process of two seconds
_SILENCE_SECONDS = 60.0  # after a start, in which the server may not answer yet


class Caretaker:
    """Looks every few seconds, in a thread of its own."""

    def __init__(self, registry: NodeRegistry, runs: Runs) -> None:
        self._registry = registry
        self._runs = runs
        self._told = ""
        self._crashes_due = 0.0

    def run(self, ended: threading.Event) -> None:
        """Look until ``ended`` is set; what fails is tried again."""
        started = time.monotonic()
        while not ended.wait(_LOOK_SECONDS if self._told else 0.5):
            failed = [
                told
                for care in (self._registry.bring_up_to_date, self._look_for_crashes)
                if (told := _failure(care))
            ]
            if not failed:
                self._tell("looking after nodes and runs", logging.INFO)
            elif time.monotonic() - started > _SILENCE_SECONDS:
                self._tell("; ".join(failed), logging.ERROR)

    def _look_for_crashes(self) -> None:
        if time.monotonic() >= self._crashes_due:
            for name in self._runs.resume_crashed():
                log.warning("run %s: its app was lost; it goes on", name)
            self._crashes_due = time.monotonic() + _CRASH_LOOK_SECONDS

    def _tell(self, text: str, level: int) -> None:
        """Log what is new only."""
        if text != self._told:
            log.log(level, "%s", text)
            self._told = text


def _failure(care: Callable[[], None]) -> str:
    """Return what went wrong; whoever looks after the rest must not fall over."""
    try:
        care()
    except MedFusionError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
