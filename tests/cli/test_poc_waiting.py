"""`medfusion poc` waits for a server that starts or is busy, and for nothing else."""

import pytest

from medfusion.cli import poc
from medfusion.cli.poc import _await
from medfusion.errors import DataError, FederationError


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(poc, "_LOOK_SECONDS", 0.01)


def test_what_is_empty_is_an_answer():
    assert _await(dict, "nothing was told", 5) == {}


def test_a_server_that_does_not_answer_yet_is_asked_again():
    told = iter([FederationError("busy"), None, 3])

    def look():
        found = next(told)
        if isinstance(found, Exception):
            raise found
        return found

    assert _await(look, "nothing was told", 5) == 3


def test_what_it_last_said_is_told_in_the_end():
    def look():
        raise FederationError("busy")

    with pytest.raises(FederationError, match=r"nothing was told within 0 s: busy; see the logs"):
        _await(look, "nothing was told", 0.1)


def test_other_errors_are_not_waited_for():
    def look():
        raise DataError("damaged")

    with pytest.raises(DataError):
        _await(look, "nothing was told", 5)
