"""Who belongs to which group, and what one patient adds to a release with groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.data.split import CALIBRATION, TEST
from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.evaluation.held_out_parts import HeldOut, held_out_of
from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from medfusion.evaluation.subgroups import attributes_of

TASK = Task.parse(
    {
        "task": {"name": "ward", "kind": "multilabel"},
        "features": {
            "dose": {"kind": "numeric", "low": 0, "high": 10},
            "age": {"kind": "numeric", "low": 0, "high": 120},
            "sex": {"kind": "categorical", "values": ["F", "M"]},
            "smoker": {"kind": "binary"},
        },
        "labels": {"names": ["ill", "dead"]},
    },
    where="test",
)
MEASURES = MultilabelMeasures(("ill", "dead"))


def test_groups_are_values_and_bands():
    age, sex, smoker = attributes_of(("age:40,60.5", "sex", "smoker"), TASK)
    assert age.groups == ("below 40", "40 to below 60.5", "60.5 and above")
    assert (sex.groups, smoker.groups) == (("F", "M"), ("0", "1"))
    features = np.array([[1, 39.9, 0, 1], [2, 40, 1, 0], [3, 60.5, 1, np.nan], [4, np.nan, 0, 1]])
    assert age.members(features).astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert sex.members(features).astype(int).tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert smoker.members(features).astype(int).tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (("gender",), "subgroups gender: expected one of dose, age, sex, smoker"),
        (("sexe",), "did you mean 'sex'"),
        (("age",), "expected rising cuts between 0 and 120"),
        (("age:60,40",), "rising cuts"),
        (("age:0,40",), "rising cuts"),
        (("age:forty",), "rising cuts"),
        (("age:nan",), "rising cuts"),
        (("sex:1",), "sex has groups of its own"),
        (("age:40", "age:60"), "found 'age' twice"),
    ],
)
def test_what_is_no_attribute_is_refused(written, message):
    with pytest.raises(ConfigError, match=message):
        attributes_of(written, TASK)


def release(held_out: HeldOut, rows: np.ndarray, logits, labels, in_test) -> np.ndarray:
    """As a Node joins it: the parts, then the groups of the test part."""
    ones = np.ones_like(labels)
    parts = [MEASURES.release(logits[p], labels[p], ones[p], noised=True) for p in in_test]
    test = in_test[0]
    for attribute in held_out.attributes:
        parts += [
            MEASURES.release(logits[test], labels[test], ones[test] * m[:, None], noised=True)
            for m in attribute.members(rows[test])
        ]
    return held_out.join(parts)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), written=st.sets(st.sampled_from(["sex", "smoker", "age:50"])))
def test_no_patient_adds_more_than_the_sensitivity(seed, written):
    held_out = held_out_of(3, rounds=3, attributes=attributes_of(sorted(written), TASK))
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.random(12), rng.uniform(0, 120, 12), *rng.integers(0, 2, (2, 12))], axis=1)
    rows[0, 1:] = np.nan  # in no group
    logits, labels = rng.normal(0, 3, (12, 2)), rng.integers(0, 2, (12, 2)).astype(float)
    part = np.array([TEST] * 8 + [CALIBRATION] * 4)
    whole = release(held_out, rows, logits, labels, [part == TEST, part == CALIBRATION])
    assert whole.shape == held_out.shape(MEASURES, noised=True)
    assert whole.shape[0] == 2 + 2 * len(written)
    most = held_out.sensitivity(MEASURES)
    moved = []
    for patient in range(12):
        others = np.arange(12) != patient
        without = [(part == each) & others for each in (TEST, CALIBRATION)]
        moved.append(np.linalg.norm(whole - release(held_out, rows, logits, labels, without)))
    assert max(moved) == pytest.approx(most)
    assert most == pytest.approx(np.sqrt(2 * (1 + len(written))))
    np.testing.assert_allclose([moved[0], *moved[8:]], np.sqrt(2))  # in one release only


def test_before_the_last_round_only_the_test_part_is_released():
    held_out = held_out_of(2, rounds=3, attributes=attributes_of(("sex",), TASK))
    assert (held_out.parts, held_out.groups) == ((TEST,), 0)
    assert held_out.shape(MEASURES, noised=False) == (2, 2, 256)
    assert held_out.sensitivity(MEASURES) == MEASURES.sensitivity
    array = np.ones((2, 2, 256))
    parts, groups = held_out.split(array)
    assert parts[TEST] is array
    assert len(groups) == 0


def test_what_was_joined_is_split_again():
    held_out = held_out_of(3, rounds=3, attributes=attributes_of(("sex", "age:50"), TASK))
    arrays = [np.full((2, 2, 256), k) for k in range(6)]
    parts, groups = held_out.split(held_out.join(arrays))
    assert (parts[TEST][0, 0, 0], parts[CALIBRATION][0, 0, 0]) == (0, 1)
    assert groups[:, 0, 0, 0].tolist() == [2, 3, 4, 5]
