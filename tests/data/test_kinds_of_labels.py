"""Labels of every kind of task: what task.toml may say, and how cells are read."""

import numpy as np
import pytest
from kinds_cohort import write_kind

from medfusion.data.check import check_site
from medfusion.data.labels import binary_labels
from medfusion.data.site import open_site
from medfusion.data.site_data import load_site_data, require_positives
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import ConfigError, DataError

NAN = float("nan")


def parse(kind: str, **labels) -> Task:
    data = {
        "task": {"name": "t", "kind": kind},
        "features": {"bmi": {"kind": "numeric", "low": 10, "high": 60}},
        "labels": labels,
    }
    return Task.parse(data, where="test")


def rewrite(site, header, *rows):
    (site / "studies.csv").write_text("\n".join([header, *rows]) + "\n")
    return read_studies(open_site(site))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("multilabel", {"names": ["a"], "low": 0.0}, "labels.low: not a key"),
        ("multilabel", {"names": ["a"], "column": "c"}, "labels.column: not a key"),
        ("multiclass", {"names": ["a", "b"]}, "missing key 'labels.column'"),
        ("multiclass", {"names": ["a"], "column": "c"}, "at least two classes"),
        ("multiclass", {"names": ["a", "a"], "column": "c"}, "each once"),
        ("multiclass", {"names": ["a", "b"], "column": "bmi"}, "one use"),
        (
            "multiclass",
            {"names": ["a", "b"], "column": "c", "prevalence": [0.5, 0.6]},
            "sum of 1, found 1.1",
        ),
        ("regression", {"names": ["a"], "low": 0.0}, "missing key 'labels.high'"),
        ("regression", {"names": ["a", "b"], "low": 0.0, "high": 1.0}, "one target, found 2"),
        ("regression", {"names": ["a"], "low": 1.0, "high": 1.0}, "expected low < high"),
        ("regression", {"names": ["a"], "low": 0.0, "high": 1.0, "prevalence": [0.5]}, "not a key"),
    ],
)
def test_labels_of_another_kind_are_refused(kind, labels, message):
    with pytest.raises(ConfigError, match=message):
        parse(kind, **labels)


def test_unset_keys_leave_the_digest_of_old_tasks():
    plain = parse("multilabel", names=["a"])
    assert plain.to_json()["labels"] == {"names": ["a"]}
    target = parse("regression", names=["a"], low=0, high=2, unit="year")
    assert Task.parse(target.to_json(), where="test").sha256 == target.sha256
    assert target.sha256 != parse("regression", names=["a"], low=0, high=3, unit="year").sha256


def test_a_class_becomes_one_and_the_others_zero(tmp_path):
    site = write_kind(tmp_path, "multiclass").parent / "sites" / "north"
    studies = rewrite(
        site, "study_id,patient_id,dose,noise,state",
        "a,1,1,0,ill", "b,2,1,0,", "c,3,1,0,well",
    )  # fmt: skip
    expected = [[0, 1, 0], [NAN, NAN, NAN], [1, 0, 0]]
    np.testing.assert_array_equal(studies.labels, expected)
    with pytest.raises(DataError, match="well, ill, worse or blank, found something else") as told:
        rewrite(site, "study_id,patient_id,dose,noise,state", "a,1,1,0,secret")
    assert "secret" not in str(told.value)


def test_a_target_keeps_its_unit_and_its_range(tmp_path):
    site = write_kind(tmp_path, "regression").parent / "sites" / "north"
    header = "study_id,patient_id,dose,noise,stay"
    studies = rewrite(site, header, "a,1,1,0,12.5", "b,2,1,0,")
    np.testing.assert_array_equal(studies.labels, [[12.5], [NAN]])
    with pytest.raises(DataError, match="expected 0 to 50 day"):
        rewrite(site, header, "a,1,1,0,51")
    config = (site / "site.toml").read_text()
    (site / "site.toml").write_text(config + '[columns.stay]\nfrom = "weeks"\nscale = 7\n')
    studies = rewrite(site, "study_id,patient_id,dose,noise,weeks", "a,1,1,0,3")
    assert studies.labels.tolist() == [[21.0]]


def test_selection_asks_on_which_side_of_the_ranges_middle_a_target_lies():
    task = parse("regression", names=["a"], low=0, high=50)
    labels = np.array([[10.0], [30.0], [NAN], [25.0]], np.float32)
    np.testing.assert_array_equal(binary_labels(labels, task), [[0], [1], [NAN], [0]])
    other = parse("multilabel", names=["a"])
    assert binary_labels(labels, other) is labels


def test_a_site_that_knows_no_target_is_refused_and_reported(tmp_path):
    site = write_kind(tmp_path, "regression").parent / "sites" / "north"
    assert not check_site(site).failed
    require_positives(load_site_data(site))
    rewrite(site, "study_id,patient_id,dose,noise,stay", "a,1,1,0,", "b,2,1,0,")
    codes = [finding.code for finding in check_site(site).findings]
    assert "no-targets" in codes
    with pytest.raises(DataError, match="expected a number in column stay"):
        require_positives(load_site_data(site))


def test_the_check_tells_the_share_of_each_class(tmp_path):
    site = write_kind(tmp_path, "multiclass").parent / "sites" / "north"
    report = check_site(site)
    shares = [f for f in report.findings if f.code == "label-prevalence"]
    assert not report.failed
    assert ["class 'ill'" in f.where for f in shares] == [False, True, False]
