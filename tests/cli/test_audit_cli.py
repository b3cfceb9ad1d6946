"""The command on run folders written by hand: two sites, a tiny plan."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
from plans import training_plan
from typer.testing import CliRunner, Result

from medfusion.cli.audit import audit
from medfusion.errors import DataError
from medfusion.privacy.audit.claims import read_claims
from medfusion.privacy.plan import DpPlan

# One Gaussian release: epsilon 1 at delta 1e-5 (Balle and Wang 2018: 3.7306).
PLAN = training_plan(40, 1.0, noise=3.74)
SCHEMA = {"schema": 1}


def card(**sites: dict[str, Any]) -> dict[str, Any]:
    privacy = {"enabled": True, "simulated": True, "sites": sites}
    return SCHEMA | {"run": "ward <1>", "seed": 5, "privacy": privacy}


def recorded(plan: DpPlan, epsilon: float = 1.0) -> dict[str, Any]:
    return asdict(plan) | {"epsilon": epsilon}


def summary(**epsilons: float) -> dict[str, Any]:
    sites = {name: {"epsilon": epsilon, "delta": 1e-5} for name, epsilon in epsilons.items()}
    return SCHEMA | {"seed": 5, "auroc": {}, "sites": sites}


def write_run(folder: Path, card: dict[str, Any], summary: dict[str, Any]) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.json").write_text(json.dumps(card))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sites = {"north": recorded(PLAN), "south": recorded(PLAN)}
    return write_run(tmp_path / "run", card(**sites), summary(north=1.0, south=1.0))


def call(run: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(audit)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(run), *arguments])


def told(run: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = call(run, "--json", *arguments)
    assert result.exit_code == code, result.output + repr(result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    del found["seconds"]
    return found


def test_a_sound_run_passes_and_leaves_a_page_that_needs_nothing_else(run: Path) -> None:
    result = call(run)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "north, south" in result.output
    assert "not refuted" in result.output
    assert "never that it is true" in result.output
    (plan,) = json.loads((run / "audit.json").read_text())["plans"]  # equal plans are one
    assert plan["sites"] == ["north", "south"]
    assert (plan["epsilon"], plan["canaries"], plan["confidence"]) == (1.0, 1000, 0.999)
    assert 0 <= plan["bound"] <= 1.0 < plan["largest_bound"]
    assert plan["accounted_epsilon"] == pytest.approx(1.0, rel=0.01)
    page = (run / "audit.html").read_text()
    assert "ward &lt;1&gt;" in page
    assert "<script" not in page
    assert page.count("<img") == 12
    assert page.count('role="img" aria-label=') == 2
    assert "simulated run" in page


def test_options_change_what_is_measured(run: Path) -> None:
    first = told(run, "--seed", "1")
    assert told(run, "--seed", "1") == first
    assert told(run, "--seed", "2")["plans"][0]["right"] != first["plans"][0]["right"]
    assert told(run)["inversion_correlation"] != told(run)["inversion_correlation"]
    few = told(run, "--canaries", "20", "--seed", "1")["plans"][0]
    assert (few["canaries"], few["verdict"]) == (20, "cannot tell")
    assert few["largest_bound"] < first["plans"][0]["largest_bound"]
    sure = told(run, "--confidence", "0.9999", "--seed", "1")["plans"][0]
    assert sure["largest_bound"] < first["plans"][0]["largest_bound"]


def test_a_claim_below_what_the_plan_costs_fails(tmp_path: Path) -> None:
    # As by an accountant that forgets all rounds but one.
    rounds = DpPlan(**(asdict(PLAN) | {"rounds": 4}))
    run = write_run(tmp_path / "run", card(north=recorded(rounds)), summary(north=1.0))
    found = told(run, code=1)
    assert found["holds"] is False
    assert found["plans"][0]["accounted_epsilon"] > 2
    result = call(run)
    assert result.exit_code == 1
    assert "more than the claimed 1" in result.output


def test_measured_leaks_fail_even_where_the_accountant_agrees(run: Path) -> None:
    # The accountant says what the claim says, and both are wrong: the noise is far too small.
    loud = DpPlan(**(asdict(PLAN) | {"noise_multiplier": 0.5}))
    path = write_run(run.parent / "other", card(north=recorded(loud)), summary(north=1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DpPlan, "epsilon", lambda plan: 1.0)
        found = told(path, code=1)
    assert found["plans"][0]["bound"] > 1.0
    assert found["plans"][0]["verdict"] == "refuted"


def test_plans_and_claims_that_differ_are_audited_apart(tmp_path: Path) -> None:
    quiet = DpPlan(**(asdict(PLAN) | {"noise_multiplier": 8.0}))
    sites = {"east": recorded(quiet), "north": recorded(PLAN), "south": recorded(PLAN)}
    claims = read_claims(card(**sites), summary(east=1.0, north=1.0, south=1.2))
    assert [claim.sites for claim in claims] == [("east",), ("north",), ("south",)]
    assert [claim.epsilon for claim in claims] == [1.0, 1.0, 1.2]
    assert claims[0].accounted < 0.5 < claims[1].accounted
    assert not any(claim.understated for claim in claims)


def test_a_run_from_before_some_fields_is_read(tmp_path: Path) -> None:
    older = recorded(PLAN)
    del older["unit_norm"], older["clip_quantile"]
    (claim,) = read_claims(card(north=older), summary(north=1.0))
    assert claim.plan == PLAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"privacy": {"enabled": False}}, "nothing to audit"),
        ({"privacy": {"enabled": True, "sites": {}}}, "at least one site"),
        (
            {"privacy": {"enabled": True, "sites": {"north": {"delta": 1}}}},
            "missing patients_public",
        ),
        (
            {"privacy": {"enabled": True, "sites": {"north": recorded(PLAN) | {"sample_rate": 2}}}},
            "sample_rate=2",
        ),
        ({"privacy": {"enabled": True, "sites": {"else": recorded(PLAN)}}}, "sites.else.epsilon"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_claims(card(north=recorded(PLAN)) | change, summary(north=1.0))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary(north=1.0)))
    result = call(tmp_path)
    assert isinstance(result.exception, DataError)
    assert "model/model.json" in str(result.exception)
