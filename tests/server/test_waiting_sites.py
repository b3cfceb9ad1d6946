"""Sites whose people have not approved the run yet, and a coordinator that waits for them."""

import io
import time

import pytest
from fake_federation import PATIENTS, Federation
from rich.console import Console

from medfusion.errors import FederationError, WaitingError
from medfusion.transport.requests import error_reply
from server.progress import RunProgress


@pytest.fixture(autouse=True)
def pause(monkeypatch):
    monkeypatch.setattr("server.exchange._ASK_AGAIN_SECONDS", 0.05)


def hold(site, kinds=("select", "train", "evaluate"), error=WaitingError):
    """Make a site wait; return what lets it take part."""
    waiting = {"yes": True}
    for kind in kinds:
        genuine = getattr(site, kind)

        def answer(content, number, genuine=genuine):
            if waiting["yes"]:
                return error_reply(error("not approved yet (ward): `medfusion site approve`"))
            return genuine(content, number)

        setattr(site, kind, answer)
    return lambda: waiting.update(yes=False)


def asked(federation, name, kind):
    return [number for asked, number, _ in federation.sites[name].asked if kind in asked]


def statuses(outcome):
    return [
        {name: site["status"] for name, site in line["sites"].items()}
        for line in outcome.progress.rounds
    ]


def test_a_site_that_waits_sits_rounds_out_and_comes_in_later(federation):
    approve = hold(federation.sites["north"])
    federation.grid.before = lambda kind, number: approve() if number == 2 else None
    outcome = federation.run()
    late = {"east": "ok", "north": "waiting", "west": "ok"}
    all_in = dict.fromkeys(sorted(PATIENTS), "ok")
    assert statuses(outcome) == [late, all_in, all_in]
    assert outcome.progress.selected == ["east", "west"]
    assert asked(federation, "north", "train") == [1, 2, 3]  # once a round: the quorum was there
    assert set(outcome.progress.histograms) == set(PATIENTS)


def test_a_quorum_that_waits_is_asked_again_and_the_others_are_not(tmp_path):
    federation = Federation(tmp_path, "server.round_timeout=30")
    approvals = [hold(federation.sites[name]) for name in ("north", "west")]

    def before(kind, number):
        if kind == "query.select" and len(asked(federation, "north", "select")) == 2:
            approvals[0]()

    federation.grid.before = before
    begin = time.monotonic()
    outcome = federation.run()
    assert time.monotonic() - begin < 20
    assert outcome.progress.selected == ["east", "north"]
    assert len(asked(federation, "north", "select")) == 3
    assert len(asked(federation, "east", "select")) == 1
    assert statuses(outcome)[0] == {"east": "ok", "north": "ok", "west": "waiting"}
    sent = outcome.progress.cost.bytes_down
    assert sent > sum(line["bytes_down"] for line in outcome.progress.rounds)


def test_nobody_is_waited_for_without_end(tmp_path):
    federation = Federation(tmp_path, "server.round_timeout=0.4")
    for name in ("north", "west"):
        hold(federation.sites[name])
    begin = time.monotonic()
    with pytest.raises(WaitingError, match=r"1 of 3 sites answered.*medfusion site approve"):
        federation.run()
    assert 0.4 <= time.monotonic() - begin < 10
    assert len(asked(federation, "north", "select")) > 2


def test_a_quorum_that_approvals_cannot_bring_fails_at_once(tmp_path):
    federation = Federation(tmp_path, "server.round_timeout=30", "server.min_sites=3")
    hold(federation.sites["north"])
    hold(federation.sites["west"], error=FederationError)
    begin = time.monotonic()
    with pytest.raises(FederationError, match="1 of 3 sites"):
        federation.run()
    assert time.monotonic() - begin < 15
    assert len(asked(federation, "north", "select")) == 1


def test_a_site_that_is_denied_while_it_is_waited_for_has_failed(tmp_path):
    federation = Federation(tmp_path, "server.round_timeout=30", "server.min_sites=3")

    def select(content, number):
        kind = FederationError if len(asked(federation, "north", "select")) > 1 else WaitingError
        return error_reply(kind("no"))

    federation.sites["north"].select = select
    with pytest.raises(FederationError, match="2 of 3 sites") as caught:
        federation.run()
    assert not isinstance(caught.value, WaitingError)


def test_that_a_site_waits_is_said_once(federation):
    text = io.StringIO()
    show = RunProgress(Console(file=text))
    error = WaitingError("not approved yet")
    for said in (error, error, None, error):
        show.site_replied("north", round=1, seconds=0.1, error=said)
    show.site_replied("west", round=1, seconds=0.1, error=FederationError("broken"))
    assert text.getvalue().count("site north waits: not approved yet") == 2
    assert "site west failed: broken" in text.getvalue()


def test_every_request_of_the_run_carries_its_signature(federation):
    loop, context = federation.loop()
    object.__setattr__(context, "signature", "c2lnbmVk")
    outcome = loop.run()
    loop.deliver(outcome, {})
    signatures = {
        (kind.rsplit(".")[-1], request["signature"])
        for kind, _, request in federation.sites["east"].asked
    }
    assert signatures == {
        ("describe", None),
        *((kind, "c2lnbmVk") for kind in ("select", "train", "evaluate", "deliver")),
    }
