"""Drift is told where it is, and not where there is none."""

import numpy as np
import pytest

from medfusion.evaluation.calibration import DRIFT_BINS, LabelCalibration
from medfusion.evaluation.drift import missing_modality_drift, score_drift
from medfusion.evaluation.score_histograms import LIMIT


def label(scores: np.ndarray) -> LabelCalibration:
    """A label whose federation had these scores; bins by numpy."""
    inside = np.clip(scores, -LIMIT, LIMIT)
    counts, _ = np.histogram(inside, bins=DRIFT_BINS, range=(-LIMIT, LIMIT))
    return LabelCalibration(
        positives=1,
        negatives=1,
        calibrator=None,
        operating_bin=None,
        present_from=0,
        absent_below=0,
        score_shares=tuple(counts / len(scores)),
    )


@pytest.fixture
def labels():
    scores = np.random.default_rng(0).normal(-1, 2, (5000, 2))
    return {"ill": label(scores[:, 0]), "dead": label(scores[:, 1])}


def test_scores_of_the_same_patients_give_no_warning(labels):
    warned = [
        bool(score_drift(np.random.default_rng(seed).normal(-1, 2, (60, 2)), labels))
        for seed in range(1, 101)
    ]
    assert np.mean(warned) < 0.1


def test_a_shifted_label_is_named(labels):
    scores = np.random.default_rng(2).normal([-1, 1], 2, (200, 2))
    found = score_drift(scores, labels)
    assert len(found) == 1
    assert "'dead'" in found[0]
    assert "total variation 0.3" in found[0]


def test_the_federation_s_own_noise_is_no_drift(labels):
    """Shares that strayed by their noise alone."""
    rng, found = np.random.default_rng(4), {True: 0, False: 0}
    for seed in range(50):
        strayed = np.array(labels["ill"].score_shares) + rng.normal(0, 0.03, DRIFT_BINS)
        shares = tuple(np.clip(strayed, 0, None) / np.clip(strayed, 0, None).sum())
        scores = np.random.default_rng(seed).normal(-1, 2, (400, 1))
        for told, noise in ((True, 0.03), (False, 0.0)):
            update = {"score_shares": shares, "score_noise": noise}
            one = {"ill": labels["ill"].model_copy(update=update)}
            found[told] += bool(score_drift(scores, one))
    assert found[True] == 0
    assert found[False] > 25


def test_few_studies_and_labels_that_nobody_knows_tell_nothing(labels):
    shifted = np.random.default_rng(3).normal(5, 1, (200, 2))
    assert len(score_drift(shifted, labels)) == 2
    assert score_drift(shifted[:49], labels) == []
    unknown = labels["ill"].model_copy(update={"score_shares": ()})
    assert len(score_drift(shifted, {"ill": unknown, "dead": labels["dead"]})) == 1


def test_a_modality_that_most_studies_lack_is_named():
    missing = ["image+text", "image", "image", "", "text", "image"]
    (found,) = missing_modality_drift(missing, ("image", "tabular", "text"))
    assert found.startswith("image is missing in 4 of 6 studies")
