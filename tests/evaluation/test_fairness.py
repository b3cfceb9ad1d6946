"""Subgroups: who belongs to which, and gaps against a loop over resamples."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medfusion.data.task import Task
from medfusion.errors import UsageError
from medfusion.evaluation import fairness
from medfusion.evaluation.fairness import Grouping, grouping_of, subgroups_json
from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from medfusion.evaluation.regression_measures import RegressionMeasures

TASK = Task.parse(
    {
        "task": {"name": "t", "kind": "multilabel"},
        "features": {
            "age": {"kind": "numeric", "low": 0, "high": 120},
            "sex": {"kind": "categorical", "values": ["F", "M"]},
            "smoker": {"kind": "binary"},
        },
        "labels": {"names": ["a", "b"]},
    },
    where="test",
)
FEATURES = np.array([[39.9, 0, 1], [40, 1, 0], [60, 1, np.nan], [np.nan, np.nan, 1], [5, 0, 0]])


@pytest.mark.parametrize(
    ("text", "names", "group"),
    [
        ("sex", ["F", "M"], [0, 1, 1, 2, 0]),
        ("smoker", ["0", "1"], [1, 0, 2, 1, 0]),
        ("age:40,60", ["below 40", "40 to below 60", "60 and above"], [0, 1, 2, 3, 0]),
        ("age:50", ["below 50", "50 and above"], [0, 0, 1, 2, 0]),
    ],
)
def test_studies_are_grouped_as_asked(text, names, group):
    found = grouping_of(text, TASK, FEATURES)
    assert found.names == (*names, "(unknown)")
    assert found.group.tolist() == group


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sxe", r"expected one of age, sex, smoker \(did you mean 'sex'\?\)"),
        ("age", "expected rising cuts between 0 and 120, as in --by age:A,B"),
        ("age:60,40", "rising cuts"),
        ("age:x", "rising cuts"),
        ("age:0", "rising cuts"),
        ("sex:1", "expected --by sex"),
    ],
)
def test_what_makes_no_groups_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        grouping_of(text, TASK, FEATURES)


def test_figures_and_gaps_are_those_of_a_loop_over_resamples(monkeypatch):
    monkeypatch.setattr(fairness, "RESAMPLES", 60)
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(80), 2)
    group = (patients % 3 == 0).astype(np.intp)
    labels = (rng.random((160, 2)) < 0.4).astype(float)
    logits = rng.normal(labels * (1 + group[:, None]), 1.0)
    known = (rng.random((160, 2)) < 0.8).astype(float)
    grouping = Grouping("g", ("first", "second", "(unknown)"), group)
    found = subgroups_json(
        grouping, MultilabelMeasures(("a", "b")), logits, labels, known, patients, min_patients=5
    )
    assert [row["group"] for row in found["groups"]] == ["first", "second"]
    drawn = np.random.default_rng(0).multinomial(size=61, n=80, pvals=np.full(80, 1 / 80))
    drawn[0] = 1
    gaps = []
    for weights in drawn:
        areas = np.empty((2, 2))
        for side in (0, 1):
            for label in (0, 1):
                keep = (group == side) & (known[:, label] > 0)
                areas[side, label] = roc_auc_score(
                    labels[keep, label], logits[keep, label], sample_weight=weights[patients][keep]
                )
        gaps.append((areas[1] - areas[0]).mean())
    second = found["groups"][1]
    assert second["patients"] == len(np.unique(patients[group == 1]))
    assert second["known"]["a"] == int(known[group == 1, 0].sum())
    assert second["gaps"]["auroc_macro"]["mean"] == pytest.approx(gaps[0])
    assert second["gaps"]["auroc_macro"]["ci95"] == pytest.approx(
        np.percentile(gaps[1:], [2.5, 97.5])
    )
    first = found["groups"][0]["gaps"]["auroc_macro"]
    assert first["mean"] == pytest.approx(-second["gaps"]["auroc_macro"]["mean"])
    assert "auroc_within_sites" not in second["figures"]


def test_small_groups_have_counts_and_no_figures():
    rng = np.random.default_rng(0)
    group = np.array([0] * 12 + [1] * 4)
    outputs = rng.normal(size=(16, 1))
    known = np.ones((16, 1))
    args = (RegressionMeasures(("stay",), 0, 10), outputs, 5 + 5 * outputs, known, np.arange(16))
    grouping = Grouping("g", ("many", "few", "(unknown)"), group)
    many, few = subgroups_json(grouping, *args, min_patients=5)["groups"]
    assert many["figures"]["mae"]["mean"] is not None
    assert (many["gaps"], few["figures"], few["gaps"]) == (None, None, None)
    assert (few["patients"], few["known"]) == (4, {"stay": 4})
    many, few = subgroups_json(grouping, *args, min_patients=4)["groups"]
    assert few["gaps"]["mae"]["mean"] == -many["gaps"]["mae"]["mean"]


def test_a_label_that_one_side_lacks_is_no_gap():
    rng = np.random.default_rng(5)
    group = np.repeat([0, 1], 30)
    labels = (rng.random((60, 2)) < 0.5).astype(float)
    labels[group == 1, 1] = 0  # no positive: that label has no figure in the second group
    logits = rng.normal(labels, 1.0)
    logits[group == 0, 1] = -9 * labels[group == 0, 1]  # and is as bad as can be in the first
    grouping = Grouping("g", ("first", "second", "(unknown)"), group)
    measures = MultilabelMeasures(("a", "b"))
    known = np.ones((60, 2))
    rows = subgroups_json(grouping, measures, logits, labels, known, np.arange(60), min_patients=5)[
        "groups"
    ]
    area = [roc_auc_score(labels[group == g, 0], logits[group == g, 0]) for g in (0, 1)]
    assert rows[1]["gaps"]["auroc_macro"]["mean"] == pytest.approx(area[1] - area[0])
