from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tabular_cohort import write_ward

from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST, TRAIN
from medfusion.data.thresholds import Selection
from medfusion.errors import DataError, FederationError
from medfusion.models.options import LogisticOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import SavedModel
from medfusion.scoring import score_part, selection_at


@pytest.fixture
def site(tmp_path: Path):
    return load_site_data(write_ward(tmp_path / "ward").parent / "sites" / "north")


def saved_model(task, *, method="none", selection=None, top_n=1) -> SavedModel:
    options = LogisticOptions()
    module = build_model(options, task, seed=0)
    with torch.no_grad():
        module.linear.tabular.weight[0, 0] = 2.0  # the first label: the scaled age
    return SavedModel(module, options, task, selection, method, top_n, {})


def test_every_test_study_is_scored_in_its_own_row(site, tmp_path):
    scores = score_part(saved_model(site.task), site, TEST, cache=tmp_path)
    studies = site.part(TEST)
    assert len(studies) > studies.n_patients  # all studies of a patient, not one
    np.testing.assert_allclose(
        scores.logits[:, 0], 2 * (studies.features[:, 0] / 50 - 1), atol=1e-5
    )
    np.testing.assert_array_equal(scores.known, ~np.isnan(studies.labels))
    np.testing.assert_array_equal(scores.labels[:, 0], studies.labels[:, 0])
    np.testing.assert_array_equal(scores.patients, studies.patient_ids)


def test_another_task_is_refused(site, tmp_path):
    other = site.task.model_copy(update={"labels": type(site.task.labels)(names=("ill", "gone"))})
    with pytest.raises(DataError, match=r"differs from the model's in \[labels\]"):
        score_part(saved_model(other), site, TEST, cache=tmp_path)


def test_a_diverged_model_is_refused(site, tmp_path):
    saved = saved_model(site.task)
    with torch.no_grad():
        saved.module.bias.weight.fill_(torch.nan)
    with pytest.raises(FederationError, match="NaN"):
        score_part(saved, site, TEST, cache=tmp_path)


def test_local_selection_comes_from_training_patients_only(site):
    saved = saved_model(site.task, method="local")
    chosen = selection_at(saved, site)
    found = {(t.label, t.feature, t.value, t.direction) for t in chosen.thresholds}
    assert ("ill", "age", 50.0, "above") in found
    labels = site.studies.labels.copy()
    labels[site.split != TRAIN] = 1 - labels[site.split != TRAIN]
    turned = replace(site, studies=replace(site.studies, labels=labels))
    assert selection_at(saved, turned) == chosen
    labels[site.split == TRAIN] = 1 - labels[site.split == TRAIN]
    assert selection_at(saved, turned) != chosen


def test_a_carried_selection_is_used_and_none_means_all(site):
    empty = Selection(thresholds=(), top_n=1)
    assert selection_at(saved_model(site.task, method="federated", selection=empty), site) is empty
    assert selection_at(saved_model(site.task, method="none"), site) is None
