"""Which site's reply comes first changes no bit of the model: sums run in the names' order."""

from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from quadratics import QuadraticRun, plain_sgd, w_of

from medfusion.config import StrategyOptions
from medfusion.transport.requests import ARRAYS, METRICS, WEIGHT_KEY
from server.strategies import build_strategy


@dataclass
class FixedSite:
    """Answers with the same number for each entry."""

    value: float
    patients: int = 40

    def train(self, content, training):
        record = ArrayRecord({"w": Array(np.full(4, self.value, np.float32))})
        return RecordDict({ARRAYS: record, METRICS: MetricRecord({WEIGHT_KEY: self.patients})})


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "fednova", "label_aware"])
def test_the_order_of_replies_does_not_matter(name):
    """In float64, 1e17 - 1e17 + 1 is 1, and 1 - 1e17 + 1e17 is 0."""
    ends = []
    for turned in (False, True):
        sites = {"a": FixedSite(1e17), "b": FixedSite(-1e17), "c": FixedSite(1.0)}
        strategy = build_strategy(StrategyOptions(name=name), min_sites=1)
        run = QuadraticRun(strategy, sites, plain_sgd(), turned=turned)
        ends.append(w_of(run.run(1)))
    np.testing.assert_array_equal(*ends)
    assert ends[0].any()
