"""Of every kind of task: a held-out part without patients is answered like any other."""

from typing import get_args

import numpy as np
import pytest
from boxes_cohort import write_boxes
from kinds_cohort import write_kind
from node_asker import NodeAsker, without
from tabular_cohort import write_ward

from medfusion.data.split import CALIBRATION, TEST
from medfusion.data.task import Kind
from medfusion.evaluation.kinds import measures_of
from medfusion.transport.requests import read_error, read_histograms

PARTS = (TEST, CALIBRATION)  # in the order of the last round's release
EMPTY = [(TEST,), (CALIBRATION,), PARTS]


@pytest.fixture(scope="module", params=get_args(Kind))
def of_kind(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "multilabel":
        return write_ward(folder).parent
    if request.param == "detection":
        return write_boxes(folder, patients=20).parent
    return write_kind(folder, request.param).parent


def release(of_kind, folder, empty, *overrides):
    """Return a Node's answer to the last round's request to evaluate, and who answered."""
    usual = ("run.rounds=1", "training.steps=1", "selection.method=none")
    asker = NodeAsker(of_kind, folder, *usual, *overrides, change=without(*empty))
    reply = asker.ask("evaluate")
    assert read_error(reply) is None
    return read_histograms(reply), asker


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("empty", EMPTY)
def test_without_privacy_nobody_is_counted_in_it(of_kind, tmp_path, empty):
    usual, _ = release(of_kind, tmp_path / "usual", ())
    found, _ = release(of_kind, tmp_path / "empty", empty)
    assert found.shape == usual.shape
    for part, counts, others in zip(PARTS, found, usual, strict=True):
        assert others.any()
        np.testing.assert_array_equal(counts, 0 if part in empty else others)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("empty", EMPTY)
def test_under_privacy_it_is_noise_of_the_planned_size(of_kind, tmp_path, empty):
    private = ("privacy.enabled=true", "privacy.target_epsilon=8", "training.batch_size=4")
    usual, _ = release(of_kind, tmp_path / "usual", (), *private)
    found, asker = release(of_kind, tmp_path / "empty", empty, *private)
    assert found.shape == usual.shape
    sensitivity = measures_of(asker.data.task).sensitivity
    spread = asker.node._trainer._plan.metrics_noise * sensitivity
    for part, noised in zip(PARTS, found, strict=True):
        if part in empty:
            size = np.sqrt(np.mean(noised**2))
            assert size == pytest.approx(spread, rel=5 / np.sqrt(2 * noised.size))
