"""Sites that come, or come back, after the roll call."""

import pytest
from fake_federation import PATIENTS, Federation
from fake_sites import FakeSite

from medfusion.errors import ConfigError
from server.results import model_card
from server.rounds import RoundLoop


def at_round(federation, number, change):
    """Call ``change`` once, when a round's first message goes out."""
    done = []

    def before(kind, round_number):
        if (kind, round_number) == ("train", number) and not done:
            done.append(True)
            change()

    federation.grid.before = before


def sites_of(outcome):
    return [
        sorted(name for name, site in line["sites"].items() if site["status"] == "ok")
        for line in outcome.progress.rounds
    ]


def test_a_site_that_comes_late_takes_part_from_the_next_round_on(federation):
    late = FakeSite("late", federation.task.to_json(), 5, 100.0)
    at_round(federation, 1, lambda: federation.grid.sites.update({9: late}))
    loop, context = federation.loop()
    outcome = loop.run()
    loop.deliver(outcome, model_card(context, outcome))
    kinds = [(kind, number) for kind, number, _ in late.asked]
    assert kinds[:2] == [("query.describe", 0), ("train", 2)]
    assert kinds[-1] == ("query.deliver", 0)
    assert list(context.roster.sites) == ["east", "late", "north", "west"]
    assert context.roster.nodes == [3, 9, 5, 7]


def test_a_site_that_was_silent_at_the_roll_call_takes_part_later(federation, monkeypatch):
    monkeypatch.setattr("server.latecomers._ASK_AGAIN_SECONDS", 0.0)
    federation.grid.silent.add(5)
    at_round(federation, 1, federation.grid.silent.clear)
    found = sites_of(federation.run())
    assert found[0] == ["east", "west"]
    assert found[-1] == sorted(PATIENTS)


def test_a_late_site_that_does_not_fit_is_refused_and_harms_nobody(federation):
    task = federation.task.to_json()
    other = task | {"features": dict(reversed(task["features"].items()))}
    late = {9: FakeSite("late", other, 5, 1.0), 10: FakeSite("east", task, 5, 1.0)}
    at_round(federation, 1, lambda: federation.grid.sites.update(late))
    assert sites_of(federation.run()) == [sorted(PATIENTS)] * 3
    assert {kind for site in late.values() for kind, _, _ in site.asked} == {"query.describe"}


def test_a_site_with_another_key_keeps_its_place(federation):
    def rotate():
        federation.grid.sites[11] = federation.grid.sites.pop(5)

    at_round(federation, 2, rotate)
    federation.config = federation.config.model_copy(
        update={"run": federation.config.run.model_copy(update={"rounds": 5})}
    )
    found = sites_of(federation.run())
    assert found[0] == found[-1] == sorted(PATIENTS)


def interrupted(federation, number):
    """Run until a round is done, as a coordinator that is killed then."""

    def stop(*_):
        raise KeyboardInterrupt

    at_round(federation, number + 1, stop)
    with pytest.raises(KeyboardInterrupt):
        federation.run()
    federation.grid.before = lambda kind, number: None


def test_a_run_resumes_without_a_site_that_is_away(federation):
    interrupted(federation, 1)
    north = federation.grid.sites.pop(5)
    loop, context = federation.loop()
    outcome = loop.run()
    assert sites_of(outcome) == [sorted(PATIENTS), ["east", "west"], ["east", "west"]]
    assert sorted(context.roster.sites) == sorted(PATIENTS)  # the summary tells of it
    assert north.patients == context.roster.sites["north"].patients_public


def test_a_run_resumes_with_a_site_that_comes_back(federation):
    interrupted(federation, 1)
    north = federation.grid.sites.pop(5)
    at_round(federation, 2, lambda: federation.grid.sites.update({5: north}))
    federation.config = federation.config.model_copy(
        update={"run": federation.config.run.model_copy(update={"rounds": 5})}
    )
    found = sites_of(federation.run())
    assert found[1] == ["east", "west"]
    assert found[-1] == sorted(PATIENTS)


def test_a_site_that_declares_other_patients_is_not_resumed_with(federation):
    interrupted(federation, 1)
    federation.sites["north"].patients += 1
    with pytest.raises(ConfigError, match=r"'north' declares .*71.*expected .*70"):
        federation.run()


def test_privacy_of_whole_sites_lets_nobody_in_late(tmp_path):
    federation = Federation(tmp_path)
    loop, _ = federation.loop()
    assert isinstance(loop, RoundLoop)
    loop._asking.latecomers._closed = True
    late = FakeSite("late", federation.task.to_json(), 5, 100.0)
    at_round(federation, 1, lambda: federation.grid.sites.update({9: late}))
    loop.run()
    assert late.asked == []
