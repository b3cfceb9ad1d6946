import json
import re
import shutil
from math import inf
from pathlib import Path

import pytest
import typer
from ledgers import GATE, costs
from tabular_cohort import write_ward
from typer.testing import CliRunner, Result

from medfusion.cli.privacy import privacy
from medfusion.data.site import load_site
from medfusion.errors import ConfigError, LedgerError
from medfusion.privacy import ledger_statement
from medfusion.privacy.accounting import composed_epsilon, merged
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.ledger_file import LEDGER
from medfusion.privacy.ledger_witness import default_witnesses
from medfusion.privacy.renyi_filter import Gate


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_ward(tmp_path / "ward").parent / "sites" / "north"


def call(site: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(privacy)
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(site), *arguments])


def told(site: Path, *arguments: str) -> dict:
    result = call(site, "--json", *arguments)
    assert result.exit_code == 0, result.output + str(result.exception)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(result.stdout, parse_constant=refuse)


def spend(site: Path) -> None:
    """Reserve a plan of three rounds; select, train a round, and charge a second."""
    state = load_site(site).state
    state.mkdir()
    ledger = Ledger.create(state, site="north", witnesses=default_witnesses())
    run = ledger.reserve("study-1", settings_sha256="s", costs=costs(noise=4.0), gate=GATE)
    ledger.release(run, "select", 0, "c", lambda: b"histograms")
    ledger.release(run, "train", 1, "c", lambda: b"model")
    ledger.charge(run, "train", 2, "c")
    ledger.close()


def test_a_site_that_released_nothing_has_everything_left(site: Path) -> None:
    found = told(site)
    assert {"site", "epsilon", "delta", "max_epsilon", "remaining", "releases"} <= found.keys()
    assert (found["site"], found["epsilon"], found["remaining"]) == ("north", 0.0, 8.0)
    assert (found["delta"], found["max_epsilon"], found["releases"]) == (1e-5, 8.0, [])
    assert "epsilon 0.000 of 8 at delta 1e-05; left: 8.000" in call(site).output
    assert not load_site(site).state.exists()  # looking begins nothing


def test_what_was_released_and_what_is_left(site: Path) -> None:
    spend(site)
    found = told(site)
    kinds = [(entry["kind"], entry["round"], entry["stored"]) for entry in found["releases"]]
    assert kinds == [("select", 0, True), ("train", 1, True), ("train", 2, False)]
    plan = costs(noise=4.0)
    assert found["epsilon"] == composed_epsilon(plan.events(), delta=1e-5)
    assert found["remaining"] == pytest.approx(8.0 - found["epsilon"])
    tight = found["fixed_in_advance"]
    assert 0 < tight["released"] < tight["reserved"] == found["epsilon"]
    for entry in found["releases"]:
        each = plan.paid[entry["kind"]].each
        assert entry["epsilon"] == composed_epsilon((each,), delta=1e-5)
    (run,) = found["runs"]
    assert (run["run"], run["rounds"]) == ("study-1", 3)
    assert set(run) == {"run", "reserved", "epsilon", "rounds", "kinds"}  # each figure once
    counts = {kind: (part["charged"], part["releases"]) for kind, part in run["kinds"].items()}
    assert counts == {"select": (1, 1), "train": (2, 3), "evaluate": (0, 1)}
    for kind, part in run["kinds"].items():
        each = plan.paid[kind]
        events = merged([each.each] * each.releases)
        assert part["epsilon"] == composed_epsilon(events, delta=1e-5)


def test_the_tables(site: Path) -> None:
    spend(site)
    output = call(site).output
    assert "train (not sent)" in output
    assert "2 of 3" in output
    assert "together" in output
    found = told(site)
    tight, (bar,) = found["fixed_in_advance"], re.findall(r"site north  \[([#+.]{40})\]", output)
    reserved = bar.count("#") + bar.count("+")
    assert bar == "".join(sorted(bar, key="#+.".index))
    assert reserved == round(40 * found["epsilon"] / 8.0)
    assert bar.count("#") == round(reserved * tight["released"] / tight["reserved"])
    assert "#" in bar
    assert "+" in bar
    assert "parameters fixed in advance: released" in output


def test_a_delta_too_small_for_any_bound_is_null(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(site)
    monkeypatch.setattr(ledger_statement, "composed_epsilon", lambda *_, **__: inf)
    monkeypatch.setattr(Gate, "epsilon", lambda *_: inf)
    found = told(site)
    assert (found["epsilon"], found["remaining"]) == (None, 0.0)
    assert found["releases"][0]["epsilon"] is None
    assert "epsilon no bound of 8" in call(site).output


def test_how_many_rounds_of_a_planned_run_fit(site: Path) -> None:
    spend(site)
    config = str(site.parents[1] / "config.toml")
    private = ("--config", config, "--set", "privacy.enabled=true")
    small = told(site, *private, "--set", "privacy.target_epsilon=1")["planned"]
    assert (small["rounds"], small["rounds_that_fit"]) == (2, 2)
    large = told(site, *private, "--set", "privacy.target_epsilon=8")["planned"]
    assert large["rounds_that_fit"] < 2
    assert large["run"].startswith("ward-")
    assert "of 2 rounds fit" in call(site, *private).output
    error = call(site, "--config", config).exception
    assert isinstance(error, ConfigError)
    assert "no plan to fit" in str(error)


def test_a_ledger_that_was_lost_or_cut_is_refused(site: Path) -> None:
    spend(site)
    state = load_site(site).state
    file = state / LEDGER
    file.write_bytes(file.read_bytes()[:5000])
    error = call(site).exception
    assert isinstance(error, LedgerError)
    assert "backup" in str(error)
    shutil.rmtree(state)
    error = call(site, "--json").exception
    assert isinstance(error, LedgerError)
    assert "restore it" in str(error)
    assert not state.exists()
