"""The last round's release: test and calibration patients, at the price of the test patients."""

from dataclasses import replace

import numpy as np
import pytest
from node_asker import NodeAsker
from tabular_cohort import write_ward

from medfusion.data.split import CALIBRATION, TEST, TRAIN
from medfusion.data.thresholds import first_study_per_patient
from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from medfusion.privacy.accounting import NoisedSums
from medfusion.privacy.plan_costs import Paid, PlanCosts
from medfusion.transport.requests import read_error, read_histograms

LAST = 2


PRIVATE = ("privacy.enabled=true", "privacy.target_epsilon=8")


class Asker(NodeAsker):
    usual = ("run.rounds=2", "training.steps=1", "training.batch_size=8")

    def plan(self):
        """Return the plan of a run that trained nothing yet."""
        self.ask("select", arrays=None)
        return self.node._trainer._plan


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("parts") / "ward", sites=("north",)).parent


def without_patient(patient):
    """Zero one patient out: nothing of him or her is left."""

    def change(data):
        kept = np.flatnonzero(data.studies.patient_ids != patient)
        return replace(data, studies=data.studies.take(kept), split=data.split[kept])

    return change


def exact_config(data, *, min_patients):
    """Return a site's settings under which runs without privacy are answered."""
    policy = {"allow_without_privacy": True, "min_patients": min_patients}
    return data.config.model_copy(update={"policy": data.config.policy.model_copy(update=policy)})


def counted(ward, folder, *settings, change=None) -> np.ndarray:
    asker = Asker(ward, folder, "privacy.enabled=false", *settings, change=change)
    return read_histograms(asker.ask("evaluate", round=LAST))


def test_one_study_of_each_patient_of_both_parts_and_only_in_the_last_round(ward, tmp_path):
    asker = Asker(ward, tmp_path, "privacy.enabled=false")
    assert read_histograms(asker.ask("evaluate", round=1)).ndim == 3
    release = read_histograms(asker.ask("evaluate", round=LAST))
    for part, histogram in zip((TEST, CALIBRATION), release, strict=True):
        studies = asker.data.part(part)
        one = studies.take(first_study_per_patient(studies.patient_ids))
        known = (~np.isnan(one.labels)).sum(axis=0)
        assert known.min() > 0
        np.testing.assert_array_equal(histogram.sum(axis=(1, 2)), known)
        np.testing.assert_array_equal(histogram[:, 1].sum(axis=1), np.nansum(one.labels, axis=0))


def test_no_patient_moves_more_than_the_sensitivity_and_one_moves_all_of_it(ward, tmp_path):
    whole = Asker(ward, tmp_path / "whole", "privacy.enabled=false")
    before = read_histograms(whole.ask("evaluate", round=LAST))
    data, moved = whole.data, {}
    for part in (TRAIN, TEST, CALIBRATION):
        for patient in np.unique(data.part(part).patient_ids)[:4]:
            after = counted(ward, tmp_path / str(patient), change=without_patient(patient))
            moved[part, patient] = np.linalg.norm(after - before)
    most = MultilabelMeasures(data.task.labels.names).sensitivity
    assert max(moved.values()) == pytest.approx(most)
    assert all(size <= most + 1e-9 for size in moved.values())
    assert all(size == 0 for (part, _), size in moved.items() if part == TRAIN)
    assert {part for (part, _), size in moved.items() if size > 0} == {TEST, CALIBRATION}


def test_under_privacy_both_parts_are_noised_and_one_release_is_paid(ward, tmp_path):
    asker = Asker(ward, tmp_path, *PRIVATE)
    release = read_histograms(asker.ask("evaluate", round=LAST))
    plan = asker.node._trainer._plan
    labels = len(asker.data.task.labels.names)
    for histogram in release:
        spread = plan.metrics_noise * np.sqrt(labels)
        assert histogram.std() == pytest.approx(spread, rel=5 / np.sqrt(2 * histogram.size))
    assert not np.allclose(release[0], release[1])  # noise of their own
    charged = asker.node._ledger.book.charges.values()
    assert [charge.slot[1:] for charge in charged] == [("evaluate", LAST)]
    assert PlanCosts.of(plan).paid["evaluate"] == Paid(1, NoisedSums(plan.metrics_noise, 1.0, 1))
    assert read_error(asker.ask("evaluate", round=1)) is not None  # paid for once


def test_too_few_calibration_patients_are_not_counted_exactly(ward, tmp_path):
    """Without privacy; the test part, of enough patients, is released all the same."""

    def change(data):
        config = exact_config(data, min_patients=10)
        split = np.where(data.split == CALIBRATION, TRAIN, data.split).astype(np.int8)
        few = np.unique(data.studies.patient_ids[split == TRAIN])[:9]
        split[np.isin(data.studies.patient_ids, few)] = CALIBRATION
        return replace(data, config=config, split=split)

    asker = Asker(ward, tmp_path, "privacy.enabled=false", simulated=False, change=change)
    test, calibration = read_histograms(asker.ask("evaluate", round=LAST))
    assert asker.data.part(CALIBRATION).n_patients == 9
    assert test.sum() > 0
    assert calibration.sum() == 0


def test_groups_of_test_patients_are_counted_apart_and_noised_for_it(ward, tmp_path):
    groups = "evaluation.subgroups=['age:50']"
    asker = Asker(ward, tmp_path / "plain", "privacy.enabled=false", groups)
    release = read_histograms(asker.ask("evaluate", round=LAST))
    test = asker.data.part(TEST)
    one = test.take(first_study_per_patient(test.patient_ids))
    young = one.features[:, 0] < 50
    assert 0 < young.sum() < len(young)
    for histogram, members in zip(release[2:], (young, ~young), strict=True):
        known = (~np.isnan(one.labels[members])).sum(axis=0)
        np.testing.assert_array_equal(histogram.sum(axis=(1, 2)), known)
    private = Asker(ward, tmp_path / "private", groups, *PRIVATE)
    noised = read_histograms(private.ask("evaluate", round=LAST))
    plan = private.node._trainer._plan
    spread = plan.metrics_noise * np.sqrt(2 * 2)  # two labels; the whole and one group
    assert noised.std() == pytest.approx(spread, rel=5 / np.sqrt(2 * noised.size))
    assert plan == Asker(ward, tmp_path / "none", *PRIVATE).plan()  # at the same price


def test_exact_groups_do_not_tell_of_few_patients_without_the_feature(ward, tmp_path):
    def change(data):
        features = data.studies.features.copy()
        patients = np.unique(data.part(TEST).patient_ids)[:2]
        features[np.isin(data.studies.patient_ids, patients), 0] = np.nan
        studies = replace(data.studies, features=features)
        return replace(data, studies=studies, config=exact_config(data, min_patients=3))

    groups = "evaluation.subgroups=['age:50']"
    settings = ("privacy.enabled=false", groups)
    asker = Asker(ward, tmp_path, *settings, simulated=False, change=change)
    test, _, young, old = read_histograms(asker.ask("evaluate", round=LAST)).sum(axis=(2, 3))
    rest = test - young - old
    assert (test > 0).all()
    assert ((rest == 0) | (rest >= 3)).all()
    assert (np.maximum(young, old) >= 3).all()  # the larger one is still shown
