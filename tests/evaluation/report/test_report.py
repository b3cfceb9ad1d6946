"""The run report: self-contained, escaped, and true to the run folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import LABELS, TASK
from jinja2 import UndefinedError
from report_page import Page

from medfusion.errors import DataError
from medfusion.evaluation.intervals import auroc_interval
from medfusion.evaluation.metrics import metrics_from_counts, reliability, sigmoid
from medfusion.evaluation.report import figures, wording
from medfusion.evaluation.report.build import _content, build_report
from medfusion.evaluation.report.lead import key_figures
from medfusion.evaluation.report.page import render_page
from medfusion.evaluation.report.privacy import largest_right_share
from medfusion.evaluation.report.run_folder import read_run
from medfusion.evaluation.score_histograms import bin_centres

MakeRun = Callable[..., Path]


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
    assert "script" not in {tag for tag, _ in page.tags}


def test_names_cannot_inject_markup(make_run: MakeRun) -> None:
    evil = ("</style><script>alert(1)</script>", "<img src=x onerror=alert(1)>", 'a&amp;"b')
    page = Page(build_report(make_run(private=True, sites=evil)))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    for name in evil:  # each is shown just as it is spelt: in three tables and two legends
        assert len([row for row in page.rows if row[0] == name]) == 3
        assert page.text.count(name) >= 5


def test_roc_and_reliability_are_those_of_the_histograms(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    page, run = Page(build_report(folder)), read_run(folder)
    stored = json.loads((folder / "histograms.json").read_text())
    counts = np.sum([np.array(site) for site in stored["sites"].values()], axis=0)
    metrics = metrics_from_counts(list(counts), [sigmoid(bin_centres(256))] * 3)
    chance, *curves = figures.roc_curves(run).curves
    assert chance.name == "chance"
    for curve, label, area in zip(curves, LABELS, metrics.auroc, strict=True):
        assert np.trapezoid(curve.points[:, 1], curve.points[:, 0]) == pytest.approx(area, abs=1e-3)
        assert curve.points[[0, -1]].tolist() == [[0, 0], [1, 1]]
        assert curve.name == label
    diagram = figures.reliability_diagram(run).curves
    assert [curve.name for curve in diagram] == ["perfect", "all labels", *LABELS]
    size, predicted, observed = reliability(counts.sum(axis=0), sigmoid(bin_centres(256)))
    np.testing.assert_allclose(diagram[1].points, np.stack([predicted, observed], 1)[size > 0])
    assert diagram[1].sizes is not None
    assert np.argmax(diagram[1].sizes) == np.argmax(size[size > 0])
    row = page.row("went_icu", f"{metrics.auroc[0]:.3f}")
    assert row[4] == str(int(counts[0, 1].sum()))


def test_decision_curves_gain_over_acting_on_all_or_nobody(make_run: MakeRun) -> None:
    run = read_run(make_run(private=False))
    assert run.counts is not None
    _, first, *_ = figures.decision_curves(run).curves
    negative, positive = run.counts[0]
    risks = sigmoid(bin_centres(256))
    for threshold, gain in first.points:
        weight = threshold / (1 - threshold)
        acting = risks >= threshold
        everybody = positive.sum() - weight * negative.sum()
        model = positive[acting].sum() - weight * negative[acting].sum()
        assert gain == pytest.approx((model - max(everybody, 0)) / run.counts[0].sum())


def test_an_averaged_model_is_called_so(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=True)
    assert "running average" not in Page(build_report(folder)).text
    edit(folder / "summary.json", ema=0.0)
    assert "running average" not in Page(build_report(folder)).text
    edit(folder / "summary.json", ema=0.95)
    text = Page(build_report(folder)).text
    assert "running average of the models of all rounds, in which each round counts 0.95" in text


def test_curves_show_what_the_rounds_recorded(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    found = {figure.title: figure for figure in figures.curves_by_round(read_run(folder))}
    assert list(found) == [
        "Macro AUROC", "Update norm", "Seconds until each answered", "Traffic, all hospitals",
    ]  # fmt: skip
    up = found["Traffic, all hospitals"].curves[1]
    assert up.points.tolist() == [[number, 3.2] for number in range(1, 13)]
    names = [curve.name for curve in found["Seconds until each answered"].curves]
    assert names == ["whole round", "italy", "spain", "usa"]
    assert len(Page(build_report(folder)).charts) == 4 + 3
    private = figures.curves_by_round(read_run(make_run(private=True)))
    assert "Macro AUROC" not in [figure.title for figure in private]  # released once: no curve


def test_faults_are_told_with_their_rounds(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    assert "italy failed to answer in 1 round (4)." in Page(build_report(folder)).text
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["sites"]["italy"]["status"] = "ok"
        line["sites"]["usa"]["status"] = "failed"
        if line["round"] in (1, 2, 3, 7):
            line["sites"]["spain"]["status"] = "waiting"
    del lines[8]["sites"]["spain"]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stored = json.loads((folder / "histograms.json").read_text())
    del stored["sites"]["usa"]
    (folder / "histograms.json").write_text(json.dumps(stored))
    page = Page(build_report(folder))
    assert "spain had not approved the run yet in 4 rounds (1 to 3, 7)." in page.text
    assert "spain was absent or not asked in 1 round (9)." in page.text
    assert "usa was left out: it took part in none of the 12 rounds." in page.text
    assert "No test figures came from usa." in page.text
    assert "italy failed" not in page.text
    assert "7 of 12" in page.row("spain", "240")
    assert "2 hospitals with 480 patients trained" in page.text
    figures_shown = {name: value for name, value, _ in key_figures(read_run(folder))}
    assert (figures_shown["Hospitals"], figures_shown["Training patients"]) == ("2", "480")
    assert "answered in every round" not in page.text


def test_each_hospitals_figure_has_its_interval(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    page = Page(build_report(folder))
    stored = json.loads((folder / "histograms.json").read_text())["sites"]["italy"]
    areas = [auroc_interval(np.array(counts, dtype=float)) for counts in stored]
    ends = np.mean([area.ci95 for area in areas], axis=0)
    row = page.row("italy", "240")
    assert row[2] == str(int(np.max(np.sum(stored, axis=(1, 2)))))
    assert row[4] == f"{ends[0]:.3f} to {ends[1]:.3f}"
    cell = page.row("went_icu", *[f"{areas[0].mean:.3f} ({wording.interval(areas[0].ci95)})"])
    assert len(cell) == 4


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (2.0, 0.01), (8.0, 1e-5)])
def test_no_guess_beats_the_promised_share(epsilon: float, delta: float) -> None:
    """The likeliest of two pairs that meet (epsilon, delta) with equality is guessed so often."""
    odds = np.exp(epsilon)
    used = np.array([delta, (1 - delta) * odds / (1 + odds), (1 - delta) / (1 + odds), 0.0])
    unused = used[::-1]
    assert (used <= odds * unused + np.array([delta, 0, 0, 0]) + 1e-12).all()
    best = np.maximum(used, unused).sum() / 2
    assert largest_right_share(epsilon, delta) == pytest.approx(best)


def test_too_few_patients_are_called_so(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    assert "too few to tell" not in Page(build_report(folder)).text
    stored = json.loads((folder / "histograms.json").read_text())
    few = np.zeros((3, 2, 256))
    few[:, :, 100], few[:, :, 120] = 1, [0, 1]
    stored["sites"] = {"italy": few.tolist()}
    (folder / "histograms.json").write_text(json.dumps(stored))
    assert "includes chance: these test patients are too few" in Page(build_report(folder)).text


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
    assert "everything that left the hospital in this run can learn" in text
    assert "whoever sees all that left a hospital in this run" in text
    assert "Other runs add to it: medfusion privacy SITE." in text
    card = json.loads((folder / "model" / "model.json").read_text())
    privacy = card["privacy"] | {"simulated": False}
    privacy["sites"]["italy"] |= {"noise_multiplier": 0.51234}
    for plan in privacy["sites"].values():
        plan["selection_noise"] = None
    edit(folder / "model" / "model.json", privacy=privacy)
    page = Page(build_report(folder))
    assert "simulated" not in page.text
    assert "the selection of features" not in page.text
    assert page.row("italy", "7.99", "1e-5")[9:11] == ["0.5123", wording.DASH]
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
    assert page.row("usa", "240")[3] == wording.DASH
    assert "no AUROC is defined" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_subgroups_are_shown_with_their_gap(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=False)
    assert "Subgroups" not in Page(build_report(folder)).text
    women = {"patients": 31.0, "auroc_macro": 0.75, "auroc": {}}
    men = {"patients": 1204.0, "auroc_macro": None, "auroc": {}}
    others = {"patients": 7.0, "auroc_macro": 0.625, "auroc": {}}
    groups = {"F": women, "<M>": men, "X": others}
    alone = {"groups": {"young": women, "old": men}, "gap": None}
    found = {"sex": {"groups": groups, "gap": None}, "age": alone}  # as if of another figure
    edit(folder / "summary.json", subgroups=found)
    page = Page(build_report(folder))
    assert page.row("sex", "F") == ["sex", "F", "31", "0.750"]
    assert page.row("sex", "<M>") == ["sex", "<M>", "1,204", wording.DASH]
    assert page.row("sex", "gap")[3] == "0.125"
    assert page.row("age", "gap")[3] == wording.DASH


def test_label_without_positives_has_no_curve(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=False)
    stored = json.loads((folder / "histograms.json").read_text())
    for site in stored["sites"].values():
        site[1][1] = [0] * 256
    edit(folder / "histograms.json", sites=stored["sites"])
    names = [curve.name for curve in figures.roc_curves(read_run(folder)).curves]
    assert names == ["chance", "went_icu", "survival"]
    row = Page(build_report(folder)).row("in_icu", wording.DASH, wording.DASH, "")
    assert (row[4], row[6], row[7]) == ("0", wording.DASH, wording.DASH)


def test_summary_alone_makes_a_report(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    for name in ("rounds.jsonl", "histograms.json", "config.toml", "model/model.json"):
        (folder / name).unlink()
    page = Page(build_report(folder))
    assert page.charts == []
    assert page.row("italy")[1] == "240"


def test_the_noise_is_that_of_the_whole_release(
    make_run: MakeRun, edit: Callable[..., None]
) -> None:
    folder = make_run(private=True)
    alone = np.sqrt(3) * 1.2 * np.sqrt(3)  # three labels, three sites
    assert read_run(folder).noise == pytest.approx(alone)
    edit(folder / "histograms.json", sensitivity=2 * np.sqrt(3))  # as with three attributes
    run = read_run(folder)
    assert run.noise == pytest.approx(2 * alone)
    assert run.releases["italy"][1] == pytest.approx(2 * np.sqrt(3) * 1.2)


def test_the_page_says_how_to_do_it_again(make_run: MakeRun, edit: Callable[..., None]) -> None:
    folder = make_run(private=True)
    edit(folder / "summary.json", versions={"medfusion": "9.8.7", "code": "c0de"})
    text = Page(build_report(folder)).text
    config = (folder / "config.toml").read_bytes()
    assert hashlib.sha256(config).hexdigest() in text
    assert TASK.sha256 in text
    assert "9.8.7" in text
    assert f"medfusion simulate {folder.name}/config.toml --out again" in text
    assert f"medfusion audit {folder.name}" in text
    card = json.loads((folder / "model" / "model.json").read_text())
    edit(folder / "model" / "model.json", privacy=card["privacy"] | {"simulated": False})
    text = Page(build_report(folder)).text
    assert "medfusion simulate" not in text
    assert "secrets that never leave the hospitals" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "no summary.json; expected the folder of a finished run"),
        ("summary.json", "{", "summary.json: not valid JSON"),
        ("summary.json", "{}", "summary.json: expected schema = 1, found None"),
        ("summary.json", '{"schema": 1}', "expected the keys of a finished run, found no auroc"),
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
