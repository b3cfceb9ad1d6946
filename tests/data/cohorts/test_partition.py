from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.data.cohorts.partition import (
    FEWEST_PATIENTS,
    Partition,
    deal_patients,
    deal_to_sites,
    patient_groups,
)
from medfusion.data.cohorts.writing import Study
from medfusion.errors import DataError, UsageError


def _study(number, patient, **labels):
    return Study(study_id=f"s{number}", patient_id=patient, cells=labels)


def _groups(patients, groups=3):
    return {f"p{i:04d}": i % groups for i in range(patients)}


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(1, 8),
    alpha=st.sampled_from([1e-3, 0.1, 0.5, 10.0, 1e6]),
    seed=st.integers(0, 2**63 - 1),
    spare=st.integers(0, 60),
    groups=st.integers(1, 6),
    data=st.data(),
)
def test_nobody_is_lost_or_torn_and_no_site_is_small(sites, alpha, seed, spare, groups, data):
    patients = [f"p{i}" for i in range(sites * FEWEST_PATIENTS + spare)]
    studies, number = [], 0
    for patient in patients:
        for _ in range(data.draw(st.integers(1, 2))):
            label = data.draw(st.integers(0, groups))
            cells = {f"l{i}": str(int(i == label)) for i in range(groups)}
            studies.append(_study(number, patient, **cells))
            number += 1
    names = [f"l{i}" for i in range(groups)]
    partition = Partition(sites=sites, alpha=alpha, seed=seed)
    dealt = deal_to_sites(studies, patient_groups(studies, names), partition)
    assert [study.study_id for study in dealt] == [study.study_id for study in studies]
    assert [study.cells for study in dealt] == [study.cells for study in studies]
    site_of = {}
    for study in dealt:
        assert site_of.setdefault(study.patient_id, study.site) == study.site
    assert set(site_of) == set(patients)
    counts = Counter(site_of.values())
    assert set(counts) == {f"site_{1 + i}" for i in range(sites)}
    assert min(counts.values()) >= FEWEST_PATIENTS
    again = deal_to_sites(studies[::-1], patient_groups(studies, names), partition)
    assert [study.site for study in again[::-1]] == [study.site for study in dealt]


def test_seed_alpha_and_sites_change_the_sites():
    groups = _groups(300)
    usual = deal_patients(groups, Partition())
    assert deal_patients(groups, Partition()) == usual
    assert deal_patients(groups, Partition(seed=1)) != usual
    assert deal_patients(groups, Partition(alpha=5.0)) != usual
    assert set(deal_patients(groups, Partition(sites=3)).values()) == {0, 1, 2}


def _skew(alpha):
    """Mean over seeds of how far a group's share at a site is from its share overall."""
    groups = _groups(3000)
    distances = []
    for seed in range(10):
        counts = np.zeros((4, 3))
        for patient, site in deal_patients(groups, Partition(alpha=alpha, seed=seed)).items():
            counts[site, groups[patient]] += 1
        distances.append(np.abs(counts / counts.sum(axis=1, keepdims=True) - 1 / 3).mean())
    return np.mean(distances)


def test_small_alpha_skews_labels_and_large_alpha_does_not():
    # Expected distance of Dirichlet(0.5) shares over 4 sites is near .2; of Dirichlet(1e4), 0.
    assert _skew(1e4) < 0.01
    assert 0.1 < _skew(0.5) < 0.3
    assert _skew(0.05) > _skew(0.5) + 0.1


def test_groups_are_cut_where_the_shares_say():
    even = deal_patients(dict.fromkeys(_groups(400), 0), Partition(alpha=1e6))
    assert Counter(even.values()) == dict.fromkeys(range(4), 100)


def test_group_shares_follow_the_dirichlet_distribution():
    # A share of Dirichlet(alpha, ..., alpha) over K sites has mean 1/K and variance
    # (K - 1) / (K^2 (K alpha + 1)): .0625 for K = 4 and alpha = .5.
    groups = dict.fromkeys(_groups(4000), 0)
    shares = [
        np.bincount(list(deal_patients(groups, Partition(seed=seed)).values()), minlength=4) / 4000
        for seed in range(200)
    ]
    assert np.mean(shares, axis=0) == pytest.approx(0.25, abs=0.06)
    assert np.var(shares) == pytest.approx(0.0625, rel=0.15)


def test_patients_are_grouped_by_their_rarest_label():
    labels = ["common", "rare", "tie"]
    studies = [
        _study(0, "a", common="1", rare="0", tie="0"),
        _study(1, "b", common="1", rare="0", tie="0"),
        _study(2, "c", common="1", rare="0", tie="0"),
        _study(3, "c", common="0", rare="1", tie="1"),
        _study(4, "d", common="0", rare="", tie="0"),
    ]
    # Patient c is counted once for each label; rare and tie are equally rare.
    assert patient_groups(studies, labels) == {"a": 0, "b": 0, "c": 1, "d": 3}


def test_too_few_patients_are_refused():
    deal_patients(_groups(80), Partition(sites=4))
    with pytest.raises(DataError, match="found 79 patients for 4 sites; choose fewer sites"):
        deal_patients(_groups(79), Partition(sites=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": 0}, "sites: expected 1 to 1000, found 0"),
        ({"sites": 1001}, "sites: expected 1 to 1000"),
        ({"alpha": 0.0}, "alpha: expected 0.001 to 1e"),
        ({"alpha": float("nan")}, "alpha: expected"),
        ({"alpha": float("inf")}, "alpha: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"seed": 2**63}, "seed: expected"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(UsageError, match=message):
        Partition(**changes)
