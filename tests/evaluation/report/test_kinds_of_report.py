"""The page tells of each kind of task in its own figures."""

import json
from pathlib import Path

import numpy as np
import pytest
from finished_run import draw_studies, task_of, write_run_of_kind
from report_page import Page

from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.report import wording
from medfusion.evaluation.report.build import build_report
from medfusion.evaluation.report.run_folder import read_run


@pytest.fixture(params=["multiclass", "regression", "detection"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    return write_run_of_kind(tmp_path / "run", kind)


def test_the_headline_is_that_of_the_kind(folder: Path, kind: str) -> None:
    page = Page(build_report(folder))
    summary = json.loads((folder / "summary.json").read_text())
    key, words, absent = {
        "multiclass": (
            "auroc_macro",
            "which of 3 classes a study is: well, ill and worse",
            "boxes",
        ),
        "regression": ("mae", "It predicts stay in day.", "AUROC"),
        "detection": ("ap50", "It draws boxes around right_lung and left_lung.", "AUROC"),
    }[kind]
    assert words in page.text
    assert absent not in page.text
    form = wording.number if kind == "regression" else wording.score
    assert f"{form(summary[key])}" in page.text
    for name, site in summary["sites"].items():
        assert page.row(name, "100")[3] == form(site[key])
        assert page.row(name, "100")[2] == "60"
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_no_chart_is_empty(folder: Path, kind: str) -> None:
    page = Page(build_report(folder))
    by_round = [alt for alt in page.charts if alt and " by round: " in alt]
    assert len(by_round) == 4
    assert len(page.charts) - len(by_round) == (3 if kind == "multiclass" else 0)
    lines = [attrs["points"] for tag, attrs in page.tags if tag == "polyline"]
    assert all(line and " " in line for line in lines)


def test_a_number_has_an_interval_at_each_hospital(tmp_path: Path) -> None:
    page = Page(build_report(write_run_of_kind(tmp_path / "run", "regression")))
    measures = measures_of(task_of("regression"))
    outputs, truth, known = draw_studies("regression", 0)
    error = np.abs(25 + 25 * np.clip(outputs, -1, 1) - truth)
    half = 1.96 * error.std() / np.sqrt(len(error))
    low, high = (float(end) for end in page.row("north", "100")[4].split(" to "))
    assert (low, high) == pytest.approx((error.mean() - half, error.mean() + half), rel=1e-3)
    assert measures.release(outputs, truth, known, noised=False)[0, 0] == len(error)


def test_boxes_are_counted_and_measured_by_label(tmp_path: Path) -> None:
    folder = write_run_of_kind(tmp_path / "run", "detection")
    figures = json.loads((folder / "summary.json").read_text())["detection"]["left_lung"]
    row = Page(build_report(folder)).row("left_lung")
    assert row[1:4] == ["120", f"{figures['ap50']:.3f}", f"{figures['ap']:.3f}"]


def test_a_private_detector_is_told_by_its_studies(tmp_path: Path) -> None:
    folder = write_run_of_kind(tmp_path / "run", "detection")
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    nothing = dict.fromkeys(["ap50", "ap", "ar", "ap50_iobb", "ar50_iobb"])
    summary |= nothing | {"detection": dict.fromkeys(summary["detection"])}
    path.write_text(json.dumps(summary))
    page = Page(build_report(folder))
    assert "No AUROC is defined" not in page.text
    assert "so no AUROC is defined" in page.text
    assert "AP at IoBB" not in page.text


def test_only_a_detector_is_told_by_another_figure_where_its_own_is_unknown(tmp_path: Path) -> None:
    names = {}
    for kind in ("regression", "detection"):
        folder = write_run_of_kind(tmp_path / kind, kind)
        summary = json.loads((folder / "summary.json").read_text())
        key = measures_of(task_of(kind)).headline.key
        (folder / "summary.json").write_text(json.dumps(summary | {key: None}))
        names[kind] = read_run(folder).headline.key
    assert names == {"regression": "mae", "detection": "auroc_macro"}
    page = Page(build_report(tmp_path / "regression"))
    assert "is known of too few test patients" in page.text
    assert "AUROC" not in page.text
