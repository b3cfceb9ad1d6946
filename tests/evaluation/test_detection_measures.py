"""Measures of detection read the truth as sites hold it, and add what boxes say of studies."""

import numpy as np
import pytest
from detection_studies import MOST, detection_task

from medfusion.data.boxes import Boxes
from medfusion.data.labels import truth_array
from medfusion.errors import FederationError
from medfusion.evaluation.detection_measures import study_logits
from medfusion.evaluation.detection_metrics import FIGURES
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.score_histograms import LIMIT

SIDE, N, D = 32, 40, 3
TASK = detection_task(SIDE)
MEASURES = measures_of(TASK)


def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray, Boxes]:
    """A box in most studies; most are found, a little off."""
    rng = np.random.default_rng(0)
    near = rng.uniform(0, 0.5, (N, MOST, 2))
    corners = np.concatenate([near, near + rng.uniform(0.2, 0.5, near.shape)], axis=2)
    classes = np.zeros((N, MOST), dtype=np.int64)
    classes[:, 0] = rng.integers(0, 3, N)
    boxes = Boxes((corners * (classes > 0)[..., None]).astype(np.float32), classes)
    found = np.zeros((N, D, 6), dtype=np.float32)
    found[:, 0, :4] = (corners[:, 0] + rng.uniform(-0.02, 0.02, (N, 4))) * SIDE
    found[:, 0, 4] = rng.uniform(0.3, 0.95, N)
    found[:, 0, 5] = np.where(rng.random(N) < 0.85, classes[:, 0], rng.integers(1, 3, N))
    labels = boxes.present(2).astype(np.float32)
    return found, labels, np.ones((N, 2), dtype=np.float32), boxes


def test_a_release_gives_the_figures_of_raw_outputs():
    found, labels, known, boxes = draw()
    truth, patients = truth_array(labels, boxes), np.arange(N)
    release = MEASURES.release(found, truth, known, noised=False)
    assert release.shape == MEASURES.release_shape(noised=False)
    summary = MEASURES.summary(release + release)  # two sites that are alike
    held_out = MEASURES.held_out(found, truth, known, patients)
    for name in FIGURES:
        assert summary[name] == pytest.approx(held_out[name]["mean"], abs=0.01)
        assert held_out["labels"]["nodule"][name]["ci95"] is not None
    assert 0.5 < summary["ap"] < summary["ap50"] < 1
    assert held_out["labels"]["nodule"]["boxes"] == (boxes.classes == 1).sum()
    assert summary["auroc_macro"] == pytest.approx(held_out["auroc_macro"]["mean"], abs=0.01)
    assert MEASURES.score_counts(release).sum() == 2 * N


def test_a_noised_release_is_of_studies_alone():
    found, labels, known, boxes = draw()
    release = MEASURES.release(found, truth_array(labels, boxes), known, noised=True)
    assert release.shape == MEASURES.release_shape(noised=True)
    changed = found.copy()
    changed[:, 0, :4] = 0  # what moves boxes moves nothing
    assert np.array_equal(
        release, MEASURES.release(changed, truth_array(labels, boxes), known, noised=True)
    )
    one = np.zeros((1, D, 6))
    lowest = MEASURES.release(one, np.zeros((1, 2 + 5 * MOST)), np.ones((1, 2)), noised=True)
    assert np.linalg.norm(lowest) == pytest.approx(MEASURES.sensitivity)
    assert MEASURES.summary(release)["ap50"] is None
    assert MEASURES.summary(release)["auroc_macro"] > 0.7


def test_arms_are_compared_with_pairs():
    found, labels, known, boxes = draw()
    arms = np.stack([found, np.zeros_like(found)])[:, None]
    groups = {"fold": np.zeros(N, np.intp), "site": np.zeros(N, np.intp)}
    figures = MEASURES.figures(
        arms, truth_array(labels, boxes), known, np.arange(N), groups=groups, resamples=50
    )
    assert figures["ap50"].difference(0, 1).mean == figures["ap50"].macro(0).mean
    assert set(MEASURES.by_label.values()) <= set(figures)


def test_the_surest_detection_speaks_for_a_study():
    found = np.zeros((2, D, 6))
    found[0, :, 4], found[0, :, 5] = [0.9, 0.5, 0.5], [2, 1, 2]
    logits = study_logits(found, 2)
    np.testing.assert_allclose(logits, [[0, np.log(9)], [-LIMIT, -LIMIT]], atol=1e-12)


def test_a_diverged_model_is_refused():
    found, labels, known, boxes = draw()
    found[0, 0, 0] = np.nan
    with pytest.raises(FederationError, match="diverged"):
        MEASURES.release(found, truth_array(labels, boxes), known, noised=False)
