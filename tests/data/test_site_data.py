from dataclasses import replace

import numpy as np
import pytest

from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data, pool, require_positives
from medfusion.data.split import TEST, TRAIN, Fold
from medfusion.errors import DataError


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cohort"
    write_cohort(folder, sites=3, patients=40, seed=2)
    return [load_site_data(path) for path in sorted((folder / "sites").iterdir())]


def test_pooling_keeps_every_patient_in_its_part(sites, tmp_path):
    pooled = pool(sites, name="pooled", state=tmp_path)
    for part in (TRAIN, TEST):
        expected = [f"{s.name}/{p}" for s in sites for p in s.part(part).patient_ids]
        assert pooled.part(part).patient_ids.tolist() == expected
    assert pooled.patients_public == sum(site.patients_public for site in sites)
    np.testing.assert_array_equal(
        pooled.studies.labels, np.concatenate([s.studies.labels for s in sites])
    )


def test_the_strictest_policy_holds_for_the_pool(sites, tmp_path):
    strict = sites[1].config.model_copy(
        update={"policy": sites[1].config.policy.model_copy(update={"max_epsilon": 2.0})}
    )
    pooled = pool([sites[0], replace(sites[1], config=strict)], name="pooled", state=tmp_path)
    assert pooled.config.policy.max_epsilon == 2.0


def test_each_patient_is_tested_in_one_fold(sites):
    tested = []
    for index in range(4):
        folder = sites[0].state.parent.parent / "sites" / sites[0].name
        data = load_site_data(folder, fold=Fold(index, 4))
        tested += sorted(set(data.part(TEST).patient_ids))
    assert sorted(tested) == sorted(set(sites[0].studies.patient_ids))


def test_a_site_without_positives_is_refused_by_name(sites):
    labels = np.where(sites[0].studies.labels == 1, 0, sites[0].studies.labels)
    without = replace(sites[0], studies=replace(sites[0].studies, labels=labels))
    require_positives(sites[0])
    with pytest.raises(DataError, match=f"{sites[0].name}.*at least one positive"):
        require_positives(without)
