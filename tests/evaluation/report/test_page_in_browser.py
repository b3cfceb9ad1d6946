"""The pages in a real browser: silent, closed to the outside, accessible, and fit for a phone."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from finished_run import task_of, write_run, write_run_of_kind

from medfusion.comparison.page import build_comparison_page
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.report.build import build_report

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("multilabel", "regression", "detection", "comparison")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    long = ("a" * 70, "Krankenhaus zum Heiligen Geist", "usa")
    found = {"multilabel": build_report(write_run(folder / "run", private=True, sites=long))}
    for kind in ("regression", "detection"):
        found[kind] = build_report(write_run_of_kind(folder / kind, kind))
    found["comparison"] = write_comparison(folder)
    return found


def write_comparison(folder: Path) -> Path:
    def figure(value: float) -> dict[str, Any]:
        return {"mean": value, "ci95": [value - 0.05, value + 0.05]}

    sites = ("italy", "spain", "usa")
    crossed = {
        a: {b: figure(0.6 + 0.1 * ((i + j) % 3)) for j, b in enumerate(sites)}
        for i, a in enumerate(sites)
    }
    crossed["usa"]["italy"] = {"mean": None, "ci95": None}
    arms = [
        {
            "regime": regime,
            "settings": {},
            "auroc_macro": figure(0.7),
            "worst_site": {"site": "italy", "auroc_macro": 0.6},
            "per_site": {name: {"n_patients": 30} for name in sites},
            "cross_site": rows,
        }
        for regime, rows in (("local", crossed), ("federated", {"federated": crossed["italy"]}))
    ]
    result = {
        "arms": arms,
        "differences": [{"a": 1, "b": 0, "auroc_macro": figure(0.01)}],
        "n_patients": 90,
        "seeds": 1,
        "folds": 5,
        "resamples": 1000,
    }
    measures = measures_of(task_of("multilabel"))
    return build_comparison_page(folder, result, measures, name="covid")


@pytest.fixture(params=PAGES)
def opened(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """A page with all of its details open; ``said`` and ``asked`` are what it did meanwhile."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(pages[request.param].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    yield page
    context.close()


def violations(page: Any) -> list[str]:
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_it_is_silent_closed_and_accessible_by_day_and_night(opened: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(paper)
    assert violations(opened) == []
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate(paper) != light
    assert violations(opened) == []
    assert opened.said == []
    assert opened.asked == [opened.url]


def test_nothing_is_wider_than_a_phone_or_a_sheet_of_paper(opened: Any) -> None:
    wider = "document.documentElement.scrollWidth - window.innerWidth"
    opened.set_viewport_size({"width": 390, "height": 844})
    assert opened.evaluate(wider) <= 0
    opened.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.evaluate(wider) <= 0
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


def test_headings_are_in_order(opened: Any) -> None:
    levels = opened.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
