"""What a coordinator's server looks after while it runs: who may take part, and crashed runs."""

import logging
import threading
import time

from medfusion.errors import FederationError, MedFusionError
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
            try:
                self._registry.bring_up_to_date()
                self._look_for_crashes()
                self._tell("looking after nodes and runs", logging.INFO)
            except Exception as error:  # whoever looks after the rest must not fall over
                if not isinstance(error, MedFusionError):
                    error = FederationError(f"{type(error).__name__}: {error}")
                if time.monotonic() - started > _SILENCE_SECONDS:
                    self._tell(str(error), logging.ERROR)

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
