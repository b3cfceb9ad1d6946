import threading
from types import SimpleNamespace

from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.superlink.grid import http_grid

from server.prompt_pulls import pull_promptly


def test_a_part_that_is_not_there_yet_is_looked_for_again_within_a_moment(monkeypatch):
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)  # put back afterwards
    waits = []
    fake = SimpleNamespace(Event=lambda: _Event(waits), Lock=threading.Lock)
    monkeypatch.setattr(inflatable_utils, "threading", fake)
    looks = []

    def part(name: str) -> bytes:
        looks.append(name)
        if len(looks) < 3:
            raise ObjectUnavailableError(name)
        return b"there"

    pull_promptly()
    assert http_grid.pull_objects(object_ids=["a"], pull_object_fn=part) == {"a": b"there"}
    assert len(waits) == 2
    assert all(0 < wait < 0.2 for wait in waits)


class _Event:
    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        pass

    def wait(self, seconds: float) -> None:
        self._waits.append(seconds)
