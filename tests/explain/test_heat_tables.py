import numpy as np

from medfusion.explain.cohort import Contrast, Importance
from medfusion.explain.heat_tables import contrast_table, heat_table, importance_table


def test_cells_say_number_side_and_share_of_the_largest():
    table = heat_table("feature", ["icu", "died"], ["age", "sex"], [[2.0, -1.0], [np.nan, 0.0001]])
    (age, (first, second)), (sex, (third, fourth)) = table.rows
    assert (age, sex) == ("age", "sex")
    assert (first.text, first.percent, first.side) == ("2", 100, "for")
    assert (second.text, second.percent, second.side) == ("-1", 50, "against")
    assert (third.text, third.percent) == ("-", 0)
    assert (fourth.text, fourth.percent) == ("0", 0)


def test_what_matters_most_comes_first_with_its_interval():
    mean = np.array([[0.1, 0.5, 0.2], [0.1, 0.1, 0.3]])
    found = Importance(mean, mean - 0.05, mean + 0.05)
    table = importance_table("feature", ["icu", "died"], ["a", "b", "c"], found, most=2)
    assert [name for name, _ in table.rows] == ["b", "c"]
    assert [cell.text for cell in table.rows[1][1]] == [
        "0.2 (0.15 to 0.25)",
        "0.3 (0.25 to 0.35)",
    ]


def test_what_chance_does_not_explain_is_marked():
    found = Contrast(np.array([[0.3, 0.01, np.nan]]), np.array([[-0.1] * 3]), np.array([[0.1] * 3]))
    table = contrast_table(["icu"], ["a", "b", "c"], found)
    assert [cells[0].text for _, cells in table.rows] == [
        "0.3* (chance: -0.1 to 0.1)",
        "0.01 (chance: -0.1 to 0.1)",
        "-",
    ]
