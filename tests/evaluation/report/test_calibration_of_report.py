"""What the report says of calibration: words, tables and pictures."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import LABELS
from report_page import Page

from medfusion.errors import DataError
from medfusion.evaluation.decision_curve import net_benefit, net_benefit_of_all
from medfusion.evaluation.metrics import sigmoid
from medfusion.evaluation.report import figures, wording
from medfusion.evaluation.report.build import build_report
from medfusion.evaluation.report.run_folder import read_run
from medfusion.evaluation.score_histograms import bin_centres

MakeRun = Callable[..., Path]

CALIBRATION: dict[str, Any] = {
    "schema": 1,
    "method": "platt",
    "exclusive": False,
    "bins": 256,
    "sensitivity": 0.9,
    "coverage": 0.8,
    "labels": {
        label: {
            "positives": 31.0, "negatives": 102.2, "operating_bin": 128, "present_from": 100,
            "absent_below": 140, "calibrator": {"slope": 0.5, "intercept": -1.0},
        }
        for label in LABELS
    },
    "test": {
        "ece_before": 0.1251, "ece_after": 0.0312, "brier_before": 0.2, "brier_after": 0.18,
        "coverage": 0.834, "set_size": 1.25,
        "labels": {
            "went_icu": {
                "ece_before": 0.11, "ece_after": 0.02, "sensitivity": 0.91, "specificity": 0.42,
                "coverage": 0.85, "set_size": 1.2,
            }
        },
        "sites": {"italy": {"coverage": 0.75, "set_size": 1.5, "labels": {"went_icu": 0.7}}},
    },
}  # fmt: skip


def test_calibration_is_told_where_there_is_one(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    path = folder / "model" / "calibration.json"
    assert "Calibration and decisions" not in Page(build_report(folder)).text
    path.write_text(json.dumps(CALIBRATION))
    page = Page(build_report(folder))
    assert "the calibration error went from 0.125 to 0.031" in page.text
    assert "finds 90% of the calibration patients" in page.text
    assert "hold the truth for 80% of patients; on test patients they did for 83%" in page.text
    shown = page.row("went_icu", "31")
    decided = f"{1 / (1 + np.e):.3f}"  # bin 128 of 256 begins at logit 0
    assert shown[2:4] == ["102", decided]
    assert shown[4:] == ["0.110", "0.020", "0.910", "0.420", "0.850", "1.200"]
    assert page.row("in_icu", "31")[4:] == [wording.DASH] * 6
    assert "is the model's own" not in page.text
    run, plain = read_run(folder), sigmoid(bin_centres(256))
    assert run.calibration is not None
    told = run.calibration.labels["went_icu"].probabilities(bin_centres(256))
    drawn = figures.decision_curves(run).curves[1].points[:, 1]
    everybody = np.maximum(net_benefit_of_all(run.counts[0]), 0.0)
    np.testing.assert_allclose(drawn, net_benefit(run.counts[0], told) - everybody)
    assert not np.allclose(drawn, net_benefit(run.counts[0], plain) - everybody)
    assert page.row("italy", "0.750") == ["italy", "0.750", "1.500", "0.700", *[wording.DASH] * 2]
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page.text
    path.write_text(json.dumps(CALIBRATION | {"exclusive": True}))
    told = Page(build_report(folder))
    assert told.row("went_icu", "31")[3:] == ["0.110", "0.020", "0.850", "1.200"]
    assert "is decided from" not in told.text
    bare = {"method": "none", "sensitivity": None, "test": {}}
    path.write_text(json.dumps(CALIBRATION | bare))
    text = Page(build_report(folder)).text
    assert "nothing was calibrated" in text
    assert "from a probability of .5 on" in text
    assert "they did for an unknown share" in text
    path.write_text('{"schema": 1, "method": "platt"}')
    with pytest.raises(DataError, match=r"calibration\.json: .*exclusive"):
        build_report(folder)


def test_a_report_says_when_no_label_could_be_calibrated(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    path, labels = folder / "model" / "calibration.json", dict(CALIBRATION["labels"])
    labels["in_icu"] = labels["in_icu"] | {"calibrator": None}
    path.write_text(json.dumps(CALIBRATION | {"labels": labels}))
    text = Page(build_report(folder)).text
    assert "The probability of in_icu is the model's own: it has too few" in text
    labels = {name: label | {"calibrator": None} for name, label in labels.items()}
    path.write_text(json.dumps(CALIBRATION | {"labels": labels}))
    text = Page(build_report(folder)).text
    assert "Probabilities are the model's own: each label has too few" in text
    assert "the calibration error went from" not in text


def test_classes_are_calibrated_together_and_told_scaled(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    path, labels = folder / "model" / "calibration.json", dict(CALIBRATION["labels"])
    scaled = "scaled so that the classes add up to 1"
    path.write_text(json.dumps(CALIBRATION | {"exclusive": True}))
    assert Page(build_report(folder)).text.count(scaled) == 3  # words, reliability, decisions
    labels = {name: label | {"calibrator": None} for name, label in labels.items()}
    path.write_text(json.dumps(CALIBRATION | {"labels": labels, "exclusive": True}))
    text = Page(build_report(folder)).text
    assert "there are too few calibration patients of a class, and classes are calibrated" in text
    assert "each label has" not in text
    assert scaled not in text
    path.write_text(json.dumps(CALIBRATION))
    assert scaled not in Page(build_report(folder)).text


def test_reliability_after_is_that_of_the_calibrated_probabilities(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    assert figures.calibrated_reliability(read_run(folder)) is None
    path = folder / "model" / "calibration.json"
    labels = {
        label: content | {"calibrator": {"slope": 0.5 + row, "intercept": row - 1.0}}
        for row, (label, content) in enumerate(CALIBRATION["labels"].items())
    }
    path.write_text(json.dumps(CALIBRATION | {"labels": labels}))
    run = read_run(folder)
    figure = figures.calibrated_reliability(run)
    assert figure is not None
    assert run.counts is not None
    perfect, before, after = figure.curves
    assert (perfect.name, before.name, after.name) == ("perfect", "before", "after")
    np.testing.assert_array_equal(before.points, figures.reliability_diagram(run).curves[1].points)
    risks, truth, weight = [], [], []
    for row in range(3):
        for positive in (0, 1):
            risks += list(sigmoid((0.5 + row) * bin_centres(256) + row - 1.0))
            truth += [positive] * 256
            weight += list(run.counts[row, positive])
    size, predicted, observed = (np.zeros(10) for _ in range(3))
    for risk, positive, count in zip(risks, truth, weight, strict=True):
        bin_number = min(int(10 * risk), 9)
        size[bin_number] += count
        predicted[bin_number] += count * risk
        observed[bin_number] += count * positive
    expected = np.stack([predicted, observed], axis=1)[size > 0] / size[size > 0, None]
    np.testing.assert_allclose(after.points, expected)
