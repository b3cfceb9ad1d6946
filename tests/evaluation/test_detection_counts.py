"""Counts over sites give the figures of all their detections."""

import numpy as np
import pytest

from medfusion.evaluation.box_matching import Drawn
from medfusion.evaluation.detection_counts import counts_shape, detection_counts, detection_json
from medfusion.evaluation.detection_metrics import FIGURES, detection_figures
from medfusion.evaluation.score_histograms import bin_centres

L = 2


def draw(studies: int) -> tuple[np.ndarray, Drawn]:
    """Detections near what was drawn, with scores at centres of bins."""
    rng = np.random.default_rng(0)
    near = rng.integers(0, 30, (studies, 3, 2))
    corners = np.concatenate([near, near + rng.integers(4, 20, (studies, 3, 2))], axis=-1)
    classes = rng.integers(0, L + 1, (studies, 3))
    found = np.zeros((studies, 3, 6))
    found[..., :4] = corners + rng.integers(-2, 3, corners.shape)
    logits = rng.choice(bin_centres(256)[40:-40], (studies, 3))
    found[..., 4] = 1 / (1 + np.exp(-logits))
    found[..., 5] = np.where(rng.random(classes.shape) < 0.8, classes, rng.integers(0, 3))
    return found, Drawn(corners, classes, np.ones((studies, L)))


def part(found, drawn: Drawn, rows: slice):
    return found[rows], Drawn(drawn.corners[rows], drawn.classes[rows], drawn.known[rows])


def test_sums_over_sites_give_the_figures_of_all():
    found, drawn = draw(120)
    sites = [part(found, drawn, rows) for rows in (slice(0, 50), slice(50, 120))]
    counts = sum(detection_counts(*site) for site in sites)
    assert counts.shape == counts_shape(L)
    result = detection_json(counts, ["a", "b"])
    exact = detection_figures(found[None, None], drawn, np.arange(120), resamples=0)
    for name in FIGURES:
        values = exact[name].values[0, 0]
        assert result[name] == pytest.approx(values.mean(), abs=0.01), name
        assert [result["detection"][n][name] for n in "ab"] == pytest.approx(values, abs=0.01)
    assert 0.1 < result["ap"] < result["ap50"] < 0.95


def test_boxes_that_nothing_finds_count():
    found, drawn = draw(20)
    counts = detection_counts(np.zeros_like(found), drawn)
    assert counts.sum() == counts[:, :, 1, 0].sum() == 11 * (drawn.classes > 0).sum()
    assert detection_json(counts, ["a", "b"])["ap50"] == 0


def test_figures_are_null_without_counts_and_without_boxes():
    empty = detection_json(np.zeros(counts_shape(L)), ["a", "b"])
    none = detection_json(None, ["a", "b"])
    assert all(empty[name] is None and none[name] is None for name in FIGURES)
    assert none["detection"] == {"a": None, "b": None}
