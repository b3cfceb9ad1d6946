"""One site trains in a round, and each has one turn in a cycle."""

import numpy as np
import pytest
from quadratics import QuadraticRun, make_sites, plain_sgd, w_of

from medfusion.config import StrategyOptions
from server.strategies import build_strategy


def make_run(**options):
    strategy = build_strategy(StrategyOptions(name="cyclic", **options), min_sites=1)
    run = QuadraticRun(strategy, make_sites("none"), plain_sgd())
    run.turns = []
    for name, site in run.sites.items():
        genuine = site.train

        def train(content, training, name=name, genuine=genuine):
            run.turns.append(name)
            return genuine(content, training)

        site.train = train
    return run


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_site_has_one_turn_in_a_cycle(shuffle):
    run = make_run(shuffle=shuffle)
    run.run(18)
    cycles = [run.turns[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(cycle) == ["a", "b", "c"] for cycle in cycles)
    assert (cycles == [["a", "b", "c"]] * 6) == (not shuffle)
    other = make_run(shuffle=shuffle, order_seed=1)
    other.run(18)
    assert (other.turns == run.turns) == (not shuffle)


def test_the_model_is_what_the_site_returned():
    run = make_run(shuffle=False)
    w = np.zeros(4)
    for name in "abca":
        for _ in range(10):
            w = w - 0.05 * run.sites[name].gradient(w)
    np.testing.assert_allclose(w_of(run.run(4)), w, rtol=1e-5)
