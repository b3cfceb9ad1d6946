"""The run report: self-contained, escaped, and true to the run folder."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from medfusion.errors import DataError
from medfusion.evaluation.metrics import metrics_from_counts, sigmoid
from medfusion.evaluation.report import wording
from medfusion.evaluation.report.build import _content, _script_safe, build_report
from medfusion.evaluation.report.page import render_page
from medfusion.evaluation.report.run_folder import read_run
from medfusion.evaluation.score_histograms import bin_centres

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, text outside scripts, tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.figures: dict[str, Any] = {}
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        here = self._inside[-1] if self._inside else ""
        if here == "script" and data.startswith('[{"id"'):
            self.figures = {figure["id"]: figure for figure in json.loads(data)}
        elif here not in {"script", "style"}:
            self.text += data
        if here in {"td", "th"}:
            self.rows[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        (found,) = (row for row in self.rows if tuple(row[: len(start)]) == start)
        return found


@pytest.fixture
def edit() -> Callable[..., None]:
    def change(path: Path, **values: Any) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(data | values), encoding="utf-8")

    return change


def test_page_needs_nothing_from_elsewhere(make_run: MakeRun) -> None:
    run = make_run(private=True)
    path = build_report(run)
    assert path == run / "report.html"
    assert {entry.name for entry in run.iterdir()} == {
        "summary.json", "rounds.jsonl", "histograms.json", "model", "config.toml", "report.html",
    }  # fmt: skip
    page = Page(path)
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & set(attrs)]
    policy = next(
        attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs
    )
    assert policy is not None
    assert "default-src 'none'" in policy  # the browser itself would refuse to fetch anything
    assert [tag for tag, _ in page.tags].count("script") == 3


def test_names_cannot_inject_markup(make_run: MakeRun) -> None:
    evil = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a&amp;b")
    page = Page(build_report(make_run(private=True, sites=evil)))
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    for name in evil:  # each is shown just as it is spelt
        assert len([row for row in page.rows if row[0] == name]) == 3
    drawn = {trace["name"] for trace in page.figures["seconds"]["data"]}
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in drawn


def test_data_cannot_end_its_script_element() -> None:
    data = {"</script><!--": ["<b>", "&amp;", "\u2028"]}
    text = _script_safe(data)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == data


def test_roc_and_reliability_are_those_of_the_histograms(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    page = Page(build_report(folder))
    stored = json.loads((folder / "histograms.json").read_text())
    counts = np.sum([np.array(site) for site in stored["sites"].values()], axis=0)
    metrics = metrics_from_counts(list(counts), [sigmoid(bin_centres(256))] * 3)
    chance, *curves = page.figures["roc"]["data"]
    assert chance["name"] == "chance"
    for curve, area in zip(curves, metrics.auroc, strict=True):
        assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(area, abs=1e-3)
        assert (curve["x"][0], curve["y"][0]) == (0, 0)
        assert (curve["x"][-1], curve["y"][-1]) == (1, 1)
        assert f"{area:.3f} (" in curve["name"]
    _, everything, *labels = page.figures["reliability"]["data"]
    assert sum(everything["customdata"]) == counts.sum()
    assert [trace["visible"] for trace in (everything, *labels)] == [True, *["legendonly"] * 3]
    row = page.row("went_icu", str(int(counts[0, 1].sum())))
    assert row[3] == f"{metrics.auroc[0]:.3f}"


def test_an_averaged_model_is_called_so(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=True)
    assert "running average" not in Page(build_report(folder)).text
    edit(folder / "summary.json", ema=0.0)
    assert "running average" not in Page(build_report(folder)).text
    edit(folder / "summary.json", ema=0.95)
    text = Page(build_report(folder)).text
    assert "running average of the models of all rounds, in which each round counts 0.95" in text


def test_curves_show_what_the_rounds_recorded(make_run: MakeRun) -> None:
    page = Page(build_report(make_run(private=False)))
    assert set(page.figures) == {
        "roc", "reliability", "auroc", "update-norm", "seconds", "bytes",
    }  # fmt: skip
    up = page.figures["bytes"]["data"][1]
    assert up["x"] == list(range(1, 13))
    assert up["y"] == [3.2] * 12
    private = Page(build_report(make_run(private=True)))
    assert "auroc" not in private.figures  # metrics were released once: that is no curve


def test_thresholds_name_feature_cut_unit_direction_and_score(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    page = Page(build_report(folder))
    selection = read_run(folder).selection
    assert selection is not None
    age = next(t for t in selection.thresholds if (t.feature, t.label) == ("age", "went_icu"))
    assert page.row("went_icu", "age")[2:] == [
        age.direction, wording.number(age.value), "year", f"{age.score:.3f}",
    ]  # fmt: skip
    assert page.row("survival", "view")[2:5] == ["is", "PA", wording.DASH]
    assert page.row("went_icu", "smoker")[2:5] == ["is", "1", wording.DASH]


def test_privacy_is_told_as_it_was(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=True)
    text = Page(build_report(folder)).text
    assert "simulated" in text
    assert "the selection of features" in text
    assert "epsilon 7.99 at italy (delta 1e-5)" in text
    card = json.loads((folder / "model" / "model.json").read_text())
    privacy = card["privacy"] | {"simulated": False}
    privacy["sites"]["italy"] |= {"noise_multiplier": 0.51234}
    for plan in privacy["sites"].values():
        plan["selection_noise"] = None
    edit(folder / "model" / "model.json", privacy=privacy)
    page = Page(build_report(folder))
    assert "simulated" not in page.text
    assert "the selection of features" not in page.text
    assert page.row("italy", "7.99")[9:11] == ["0.5123", wording.DASH]
    assert "Differential privacy was off" in Page(build_report(make_run(private=False))).text


def test_what_the_initial_weights_were_trained_on_is_outside_the_epsilon(
    make_run: MakeRun, edit: Callable[..., None]
) -> None:
    folder = make_run(private=True)
    card = folder / "model" / "model.json"
    for nothing in ({}, {"initial_weights": None}):
        edit(card, **nothing)
        assert "initial weights" not in Page(build_report(folder)).text
    first = {"kind": "torchvision", "sha256": "a" * 64, "epsilon": None, "initial_weights": None}
    second = {"kind": "medfusion", "sha256": "b" * 64, "epsilon": None, "initial_weights": first}
    edit(card, initial_weights=second)
    text = Page(build_report(folder)).text
    assert "It does not cover what the initial weights were trained on." in text
    assert f"model (SHA-256 {'b' * 64}; it declares no epsilon), which began from a net" in text
    assert f"torchvision's format (SHA-256 {'a' * 64}). They carry information" in text
    priced = second | {"epsilon": 3.14159, "delta": 1e-5, "simulated": True}
    edit(card, initial_weights=priced | {"initial_weights": None})
    text = Page(build_report(folder)).text
    assert "its own run declares a simulated epsilon 3.14, delta 1e-5)" in text
    assert "which began from" not in text


def test_undefined_figures_are_dashes(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=False)
    summary = json.loads((folder / "summary.json").read_text())
    summary["sites"]["usa"]["auroc_macro"] = None
    nothing = dict.fromkeys(summary["auroc"])
    edit(folder / "summary.json", sites=summary["sites"], auroc=nothing, auroc_macro=None)
    page = Page(build_report(folder))
    assert page.row("usa")[2:5] == [wording.DASH] * 3
    assert "no AUROC is defined" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_label_without_positives_has_no_curve(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=False)
    stored = json.loads((folder / "histograms.json").read_text())
    for site in stored["sites"].values():
        site[1][1] = [0] * 256
    edit(folder / "histograms.json", sites=stored["sites"])
    page = Page(build_report(folder))
    assert len(page.figures["roc"]["data"]) == 3  # chance and two labels
    assert page.row("in_icu", "0")[3:6] == [wording.DASH] * 3


def test_summary_alone_makes_a_report(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    for name in ("rounds.jsonl", "histograms.json", "config.toml", "model/model.json"):
        (folder / name).unlink()
    page = Page(build_report(folder))
    assert page.figures == {}
    assert page.row("italy")[1] == "240"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "no summary.json; expected the folder of a finished run"),
        ("summary.json", "{", "summary.json: not valid JSON"),
        ("summary.json", "{}", "summary.json: expected schema = 1, found None"),
        ("rounds.jsonl", '{"schema": 1}\n{"schema": 2}\n', "line 2: expected schema = 1, found 2"),
        (
            "histograms.json",
            '{"schema": 1, "labels": ["a"], "bins": 2, "sites": {"x": [[[0, 0]]]}}',
            r"sites\.x: expected shape \(3, 2, \d+\), found \(1, 1, 2\)",
        ),
        ("model/model.json", '{"schema": 1, "task": {}}', "model.json: task: missing key"),
    ],
)
def test_damaged_folders_are_explained(
    make_run: MakeRun, name: str, content: str | None, message: str
) -> None:
    folder = make_run(private=False)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        build_report(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.number(None), wording.DASH),
        (wording.number(1e-5), "1e-5"),
        (wording.number(12345.0), "12,345"),
        (wording.number(37.96875), "37.97"),
        (wording.data_size(999), "999 B"),
        (wording.data_size(2_500_000), "2.5 MB"),
        (wording.data_size(999_700), "1 MB"),
        (wording.data_size(5e12), "5 TB"),
        (wording.duration(0.1234), "0.123 s"),
        (wording.duration(59.99), "60 s"),
        (wording.duration(125.4), "2 min 5 s"),
        (wording.duration(7260), "2 h 1 min"),
        (wording.listed(["a"]), "a"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
        (wording.counted(1, "round"), "1 round"),
        (wording.counted(2000, "round"), "2,000 rounds"),
    ],
)
def test_wording(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("lacking", ["client_dp_text", "selection_text"])
def test_a_page_that_lacks_content_replaces_none(make_run: MakeRun, lacking: str) -> None:
    folder = make_run(private=True)
    page = build_report(folder)
    whole, files = page.read_text(encoding="utf-8"), set(folder.iterdir())
    content = _content(read_run(folder))
    del content[lacking]
    with pytest.raises(UndefinedError, match=lacking):
        render_page("report.html.j2", content, page)
    assert (page.read_text(encoding="utf-8"), set(folder.iterdir())) == (whole, files)
