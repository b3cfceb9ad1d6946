import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from medfusion.data.split import CALIBRATION, TEST, TRAIN, Fold, split_of
from medfusion.data.studies import Studies
from medfusion.data.task import SplitRule
from medfusion.errors import DataError

PATIENTS = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=30)


def studies_of(patients: list[str], split: list[int] | None = None) -> Studies:
    n = len(patients)
    return Studies(
        study_ids=np.array([f"s{i}" for i in range(n)]),
        patient_ids=np.array(patients),
        rows=np.arange(2, n + 2),
        features=np.zeros((n, 0)),
        labels=np.zeros((n, 1), dtype=np.float32),
        images=(None,) * n,
        notes=(None,) * n,
        split_column=None if split is None else np.array(split, dtype=np.int8),
    )


def parts_of(patients: list[str], rule: SplitRule, fold: Fold | None = None) -> dict[str, int]:
    """Part of each patient; fails if a patient has two."""
    studies = studies_of(patients)
    parts = split_of(studies, site_name="north", rule=rule, fold=fold)
    found: dict[str, int] = {}
    for patient, part in zip(studies.patient_ids, parts, strict=True):
        assert found.setdefault(patient, int(part)) == part
    return found


FOLDS = st.one_of(st.none(), st.integers(0, 4).map(lambda index: Fold(index, 5)))


@given(PATIENTS, PATIENTS, st.integers(0, 5), FOLDS)
@settings(max_examples=100)
def test_no_patient_moves_another(
    some: list[str], others: list[str], seed: int, fold: Fold | None
) -> None:
    rule = SplitRule(seed=seed)
    alone, together = parts_of(some, rule, fold), parts_of(others + some, rule, fold)
    assert all(together[patient] == part for patient, part in alone.items())


@given(PATIENTS, st.integers(2, 7))
def test_each_patient_is_tested_in_exactly_one_fold(patients: list[str], count: int) -> None:
    tested = dict.fromkeys(studies_of(patients).patient_ids, 0)
    for index in range(count):
        for patient, part in parts_of(patients, SplitRule(), Fold(index, count)).items():
            tested[patient] += part == TEST
    assert set(tested.values()) == {1}


@pytest.mark.parametrize(("calibration", "test"), [(0.1, 0.2), (0, 0.5), (0.3, 0)])
def test_fractions_are_met(calibration: float, test: float) -> None:
    patients = [str(i) for i in range(20_000)]
    rule = SplitRule(calibration=calibration, test=test)
    parts = list(parts_of(patients, rule).values())
    for part, expected in (
        (TEST, test),
        (CALIBRATION, calibration),
        (TRAIN, 1 - test - calibration),
    ):
        assert parts.count(part) / len(parts) == pytest.approx(expected, abs=0.015)  # 4 sigma
    folded = list(parts_of(patients, rule, Fold(1, 5)).values())
    assert folded.count(TEST) / len(parts) == pytest.approx(0.2, abs=0.015)
    assert folded.count(CALIBRATION) / len(parts) == pytest.approx(0.8 * calibration, abs=0.015)


def test_folds_are_independent_of_the_fractions() -> None:
    patients = [str(i) for i in range(20_000)]
    plain = parts_of(patients, SplitRule(test=0.5))
    fold = parts_of(patients, SplitRule(test=0.5), Fold(0, 2))
    both = np.mean([plain[p] == TEST and fold[p] == TEST for p in patients])
    assert both == pytest.approx(0.25, abs=0.015)


def test_site_and_seed_are_part_of_the_hash() -> None:
    studies = studies_of([str(i) for i in range(200)])
    first = split_of(studies, site_name="north", rule=SplitRule())
    assert (first != split_of(studies, site_name="south", rule=SplitRule())).any()
    assert (first != split_of(studies, site_name="north", rule=SplitRule(seed=1))).any()
    assert_array_equal(first, split_of(studies, site_name="north", rule=SplitRule()))


def test_the_split_never_changes_between_versions() -> None:
    studies = studies_of([f"p{i}" for i in range(12)])
    parts = split_of(studies, site_name="north", rule=SplitRule())
    assert_array_equal(parts, [0, 2, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0])
    fold = split_of(studies, site_name="north", rule=SplitRule(), fold=Fold(0, 3))
    assert_array_equal(fold, [0, 1, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0])


def test_the_column_decides_and_a_fold_overrides_it() -> None:
    studies = studies_of(["a", "b", "c"], [2, 0, 1])
    assert_array_equal(split_of(studies, site_name="north", rule=SplitRule()), [2, 0, 1])
    tested = sum(
        split_of(studies, site_name="north", rule=SplitRule(), fold=Fold(i, 3)) == TEST
        for i in range(3)
    )
    assert_array_equal(tested, [1, 1, 1])


def test_a_patient_in_two_parts_is_refused_by_count_and_row() -> None:
    studies = studies_of(["secret", "b", "secret", "b"], [0, 0, 2, 0])
    with pytest.raises(DataError, match=r"1 patient in several \(rows 2, 4\)") as error:
        split_of(studies, site_name="north", rule=SplitRule())
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("index", "count"), [(0, 1), (3, 3), (-1, 3)])
def test_impossible_folds(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        Fold(index, count)
