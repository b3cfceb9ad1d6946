import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from node_asker import NodeAsker
from tabular_cohort import write_ward
from typer.testing import CliRunner

from client.node.audit_log import LOG
from medfusion.cli.site import app
from medfusion.data.site import load_site
from medfusion.errors import UsageError, WaitingError
from medfusion.transport.requests import read_error

RUN = ("privacy.enabled=true", "training.steps=1", "privacy.target_epsilon=4")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site folder of its own, whose people approve each run."""
    folder = write_ward(tmp_path / "ward", sites=("north",)).parent / "sites" / "north"
    toml = folder / "site.toml"
    toml.write_text(toml.read_text() + '[policy]\napprove = "ask"\n')
    return folder


def node_of(site: Path, *overrides: str) -> NodeAsker:
    state = load_site(site).state
    return NodeAsker(site.parents[1], state, *RUN, *overrides, simulated=False)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_waiting_run_is_listed_approved_and_served(site: Path) -> None:
    node = node_of(site)
    assert isinstance(read_error(node.ask("train")), WaitingError)
    run = node.settings.run_id
    listed = call("runs", site)
    assert listed.exit_code == 0, listed.output
    for part in ("waiting", "logistic", "3.9", "model updates", "medfusion site approve"):
        assert part in listed.output
    approved = call("approve", run[:8], site)
    assert approved.exit_code == 0, approved.output
    assert f"run {run} is approved" in approved.output
    assert "epsilon 3.9" in approved.output
    assert "model updates x2" in approved.output
    assert read_error(node.ask("train")) is None  # the same Node, which ran all the time
    assert call("deny", run, site).exit_code == 0
    assert "has denied it" in str(read_error(node.ask("train")))


def test_runs_as_json(site: Path) -> None:
    node = node_of(site)
    node.ask("train")
    document = json.loads(call("runs", site, "--json").stdout)
    assert (document["schema"], document["site"]) == (1, "north")
    (record,) = document["runs"]
    assert record["schema"] == 1
    assert record["status"] == "waiting"
    assert record["summary"]["leaves"][0] == {"what": "selection histograms", "times": 1}


def test_the_current_folder_is_the_default(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node_of(site).ask("train")
    monkeypatch.chdir(site)
    for arguments in (("runs",), ("approve", "ward"), ("log",), ("deny", "ward")):
        result = call(*arguments)
        assert result.exit_code == 0, result.output


def test_before_a_node_has_served_there_is_nothing(site: Path) -> None:
    assert "no runs yet" in call("runs", site).output
    assert call("log", site).exit_code == 0
    assert isinstance(call("approve", "x", site).exception, UsageError)
    assert not load_site(site).state.exists()


def test_a_run_without_privacy_is_called_exact(site: Path) -> None:
    toml = site / "site.toml"
    toml.write_text(toml.read_text() + "allow_without_privacy = true\n")
    node = node_of(site, "privacy.enabled=false")
    node.ask("train")
    text = " ".join(call("approve", "ward", site).output.split())
    assert "without privacy: what leaves is exact" in text


def test_the_log_is_printed_and_a_change_named(site: Path) -> None:
    node = node_of(site)
    node.ask("train")
    call("approve", "ward", site)
    node.ask("train")
    whole = call("log", site)
    assert whole.exit_code == 0, whole.output
    for part in ("started", "seen", "approved", "answered", "replayed=false", "4 events"):
        assert part in whole.output
    document = json.loads(call("log", site, "--json").stdout)
    assert document["broken"] is None
    assert [event["number"] for event in document["events"]] == [1, 2, 3, 4]
    assert document["events"][-1]["hash"] in whole.output
    path = load_site(site).state / LOG
    path.write_text(path.read_text().replace('"approved"', '"denied"'))
    for arguments in (("log", site), ("log", site, "--json")):
        result = call(*arguments)
        assert result.exit_code == 1
        assert "line 3 was edited" in result.stderr
    document = json.loads(call("log", site, "--json").stdout)
    assert document["broken"]["line"] == 3
    assert len(document["events"]) == 2


def test_who_decided_is_recorded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    node_of(site).ask("train")
    name = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.delenv("SUDO_USER", raising=False)
    call("approve", "ward", site)
    monkeypatch.setenv("SUDO_USER", "ada")
    call("deny", "ward", site)
    events = json.loads(call("log", site, "--json").stdout)["events"]
    assert [event["details"]["by"] for event in events[2:]] == [name, f"ada as {name}"]


def test_another_user_is_told_whom_to_be(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node_of(site).ask("train")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    for arguments in (("approve", "ward", site), ("runs", site), ("log", site)):
        error = call(*arguments).exception
        assert isinstance(error, UsageError)
        assert "expected to be called as that user: sudo -u" in str(error)
