"""Under a plan a site without patients in a part answers like any other: with noise."""

import numpy as np
import pytest
from node_asker import NodeAsker, without

from medfusion.data.split import CALIBRATION, TEST, TRAIN
from medfusion.errors import DataError
from medfusion.transport.arrays import from_record
from medfusion.transport.requests import ARRAYS, read_error, read_histograms

USUAL = ("run.rounds=1", "training.steps=2", "training.batch_size=4")


def shapes(reply):
    """All that can be told from a reply apart from the numbers in its arrays."""
    arrays = {name: a.shape for name, a in reply.array_records[ARRAYS].items()}
    return arrays, dict(reply.metric_records), set(reply.config_records)


@pytest.mark.parametrize("method", ["federated", "local"])
@pytest.mark.parametrize("empty", [(TRAIN,), (TEST,), (TRAIN, TEST), (TEST, CALIBRATION)])
def test_its_replies_and_logs_look_like_any_other(cohort, tmp_path, caplog, empty, method):
    found = []
    caplog.set_level("INFO")
    for name, change in (("usual", None), ("empty", without(*empty))):
        asker = NodeAsker(
            cohort,
            tmp_path / name,
            *USUAL,
            f"selection.method={method}",
            change=change,
            simulated=False,
        )
        select = [asker.ask("select", arrays=None)] if method == "federated" else []
        replies = [*select, asker.ask("train"), asker.ask("evaluate")]
        assert [read_error(reply) for reply in replies] == [None] * len(replies)
        found.append((list(map(shapes, replies)), caplog.messages))
        caplog.clear()
    assert found[0] == found[1]


def test_it_releases_the_planned_noise_and_nothing_else(cohort, tmp_path):
    asker = NodeAsker(cohort, tmp_path, *USUAL, change=without(TRAIN, TEST))
    counts = read_histograms(asker.ask("select", arrays=None))
    sent = from_record(asker.record)
    got = from_record(asker.ask("train").array_records[ARRAYS])
    scores = read_histograms(asker.ask("evaluate"))[0]  # those moved out calibrate
    plan = asker.node._trainer._plan
    labels = len(asker.data.task.labels.names)
    for histogram, noise, cells in (
        (counts, plan.selection_noise, labels * len(asker.data.task.features)),
        (scores, plan.metrics_noise, labels),
    ):
        spread = noise * np.sqrt(cells)
        assert histogram.std() == pytest.approx(spread, rel=5 / np.sqrt(2 * histogram.size))
        assert abs(histogram.mean()) < 5 * spread / np.sqrt(histogram.size)
    assert all((got[name] != sent[name]).any() for name in sent)


def test_without_privacy_there_is_nothing_to_train_on(cohort, tmp_path):
    asker = NodeAsker(cohort, tmp_path, *USUAL, "privacy.enabled=false", change=without(TRAIN))
    error = read_error(asker.ask("train"))
    assert isinstance(error, DataError)
    assert "no training patients" in str(error)
