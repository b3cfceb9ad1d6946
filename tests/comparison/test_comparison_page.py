"""The page of a comparison shows what compare.json holds, best where it is darkest."""

import pytest

from medfusion.comparison.page import (
    arms_table,
    build_comparison_page,
    cross_site_table,
    differences_table,
)
from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from medfusion.evaluation.regression_measures import RegressionMeasures

SITES = ("italy", "spain")


def figure(value):
    return {"mean": value, "ci95": None if value is None else [value - 0.1, value + 0.1]}


def arm(regime, rows, key, **settings):
    return {
        "regime": regime,
        "settings": settings,
        key: figure(0.75),
        "worst_site": {"site": "italy", key: 0.5},
        "per_site": {name: {"n_patients": 7} for name in SITES},
        "cross_site": {
            n: dict(zip(SITES, map(figure, row), strict=True)) for n, row in rows.items()
        },
    }


def crossed(key):
    return [
        arm("local", {"italy": (0.9, 0.5), "spain": (None, 0.7)}, key, a=[1, True]),
        arm("federated", {"federated": (0.8, 0.6)}, key, a=[1, True]),
        arm("federated", {"federated": (0.1, 0.2)}, key, a=2),
    ]


@pytest.mark.parametrize(
    ("measures", "tints"),
    [
        (MultilabelMeasures(("a",)), [[100, 0], [0, 50], [75, 25]]),
        (RegressionMeasures(("a",), 0, 9), [[0, 100], [0, 50], [25, 75]]),
    ],
)
def test_the_best_cell_is_the_darkest(measures, tints):
    table = cross_site_table(0, crossed(measures.headline.key), measures)
    assert table.head == ("Trained at", "italy (7)", "spain (7)")
    assert [row[0] for row in table.rows] == ["italy", "spain", "all (federated)"]
    assert [[cell.tint for cell in row[1:]] for row in table.rows] == tints
    assert [[cell.marked for cell in row[1:]] for row in table.rows] == [
        [True, False], [False, True], [False, False],
    ]  # fmt: skip
    assert "0.9" in table.rows[0][1].text
    assert (table.rows[1][1].text, table.rows[1][1].ends) == ("\N{EN DASH}", "\N{EN DASH}")


def test_models_that_sites_made_their_own_are_no_model_for_all(tmp_path):
    measures = MultilabelMeasures(("a",))
    key = measures.headline.key
    own = arm("personalised", {"personalised": (0.9, 0.8)}, key, a=[1, True])
    arms = [*crossed(key), own]
    table = cross_site_table(0, arms, measures)
    *_, row = table.rows
    assert [row[0] for row in table.rows][2:] == ["all (federated)", "own (personalised)"]
    assert [cell.marked for cell in row[1:]] == [True, True]
    result = {"arms": arms, "differences": [], "folds": None, "n_patients": 14, "seeds": 1}
    page = build_comparison_page(tmp_path, result | {"resamples": 9}, measures, name="x")
    assert "all is a model that learned from all sites, own is what" in page.read_text()


def test_arms_and_differences_name_their_settings():
    measures = MultilabelMeasures(("a",))
    arms = crossed("auroc_macro")
    table = arms_table(arms, measures)
    assert table.head[:4] == ("Arm", "Regime", "a", "macro AUROC")
    assert table.rows[0][:5] == ("0", "local", "1+true", "0.750", "0.650 to 0.850")
    assert table.rows[2][-1] == "0.500 italy"
    pair = {"a": 2, "b": 0, "auroc_macro": {"mean": 0.02, "ci95": [-0.01, 0.05]}}
    differences = differences_table({"arms": arms, "differences": [pair]}, measures)
    assert differences is not None
    assert differences.rows == (
        ("federated, a=2", "local, a=1+true", "+0.020", "-0.010 to +0.050"),
    )
    assert differences_table({"arms": arms, "differences": []}, measures) is None
