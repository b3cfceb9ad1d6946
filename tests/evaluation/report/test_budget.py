"""The report's account of epsilon: true to the plans, and to what came in."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from plans import training_plan
from report_page import Page

from medfusion.evaluation.report import figures
from medfusion.evaluation.report.budget import Budget, budget_table, budgets
from medfusion.evaluation.report.build import build_report
from medfusion.evaluation.report.run_folder import read_run
from medfusion.privacy.accounting import epsilon

MakeRun = Callable[..., Path]

PLAN = training_plan(
    240,
    0.1,
    noise=1.1,
    steps=8,
    rounds=12,
    selection_noise=5.0,
    metrics_noise=4.0,
    metrics_releases=1,
)


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """A run whose plans are real ones; `italy` did not answer in round 4."""
    folder = make_run(private=True)
    path = folder / "model" / "model.json"
    card = json.loads(path.read_text())
    plan = asdict(PLAN) | {"epsilon": PLAN.epsilon()}
    card["privacy"]["sites"] = dict.fromkeys(card["privacy"]["sites"], plan)
    path.write_text(json.dumps(card))
    return folder


def by_name(folder: Path) -> dict[str, Budget]:
    return {one.site: one for one in budgets(read_run(folder))}


def cost(steps: int, *, selection: int = 0, metrics: int = 0) -> float:
    return epsilon(
        delta=1e-5,
        noise_multiplier=1.1,
        sample_rate=0.1,
        steps=steps,
        releases=((5.0, selection), (4.0, metrics)),
    )


def test_each_kind_alone_and_all_together(run: Path) -> None:
    found = by_name(run)["spain"]
    assert found.alone == {
        "select": pytest.approx(cost(0, selection=1), rel=0.02),
        "train": pytest.approx(cost(96), rel=0.02),
        "evaluate": pytest.approx(cost(0, metrics=1), rel=0.02),
    }
    assert found.reserved == cost(96, selection=1, metrics=1)
    assert max(found.alone.values()) < found.reserved < sum(found.alone.values())
    assert found.left == pytest.approx(10.0 - found.reserved)


def test_only_what_came_in_is_released(run: Path) -> None:
    found = by_name(run)
    assert found["spain"].released == found["spain"].reserved
    italy = found["italy"]
    assert italy.released == pytest.approx(cost(88, selection=1, metrics=1), rel=0.01)
    assert italy.spent[0] == pytest.approx(cost(0, selection=1), rel=0.02)
    assert list(italy.spent) == [0, 3, 6, 9, 12]
    assert list(italy.spent.values()) == sorted(italy.spent.values())
    assert italy.spent[6] == pytest.approx(cost(40, selection=1), rel=0.01)


def test_a_local_selection_is_paid_for_with_the_first_round(run: Path) -> None:
    for path, key, value in (
        (run / "model" / "model.json", "selection_method", "local"),
        (run / "summary.json", "selected", []),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert by_name(run)["spain"].released == by_name(run)["spain"].reserved


def test_table_and_picture_tell_the_same(run: Path) -> None:
    found = list(by_name(run).values())
    page = Page(build_report(run))
    figure = figures.spending(found)
    assert figure is not None
    italy, *_, ceiling = figure.curves
    assert italy.points.tolist() == [[n, e] for n, e in found[0].spent.items()]
    assert ceiling.points.tolist() == [[0.0, 10.0], [12.0, 10.0]]
    assert figure.y_range[1] > 10.0
    row = page.row("italy", f"{found[0].alone['select']:.2f}")
    assert row[4:] == [
        f"{value:.2f}" for value in (found[0].reserved, found[0].released, 10.0, found[0].left)
    ]


def test_without_privacy_nothing_is_drawn(make_run: MakeRun) -> None:
    assert budgets(read_run(make_run(private=False))) == []
    assert figures.spending([]) is None
    assert budget_table([]).rows == ()


def test_privacy_of_whole_hospitals_is_told(run: Path) -> None:
    path = run / "summary.json"
    spent = {"epsilon": 123.456, "delta": 1e-5, "clip": 0.5, "noise_multiplier": 0.7}
    summary = json.loads(path.read_text())
    assert "whole hospitals" not in Page(build_report(run)).text
    path.write_text(json.dumps(summary | {"client_dp": spent | {"sites": 3, "releases": 12}}))
    text = Page(build_report(run)).text
    assert "epsilon 123.46 at delta 1e-05 for each hospital, over 12 models" in text
