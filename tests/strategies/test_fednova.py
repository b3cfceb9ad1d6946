"""FedNova against its formula, and where it must be FedAvg."""

import numpy as np
import pytest
from quadratics import QuadraticRun, make_sites, optimum, plain_sgd, w_of

from medfusion.config import StrategyOptions
from medfusion.strategies.fednova import effective_steps
from server.strategies import build_strategy


def make_run(name, training, patients=(20, 100, 200), **more):
    strategy = build_strategy(StrategyOptions(name=name), min_sites=1)
    return QuadraticRun(strategy, make_sites("none", patients), training, **more)


def test_equal_steps_are_fedavg():
    nova, avg = (w_of(make_run(name, plain_sgd()).run(5)) for name in ("fednova", "fedavg"))
    np.testing.assert_allclose(nova, avg, rtol=1e-5)


def test_one_round_follows_the_formula():
    run = make_run("fednova", plain_sgd(steps=None, batch_size=10))
    weights, steps = np.array([20, 100, 200]) / 320, np.array([2, 10, 20])
    moves = []
    for site, count in zip(run.sites.values(), steps, strict=True):
        w = np.zeros(4)
        for _ in range(count):
            w = w - 0.05 * site.gradient(w)
        moves.append(w)
    expected = (
        weights
        @ steps
        * np.sum(
            [p * move / tau for p, move, tau in zip(weights, moves, steps, strict=True)], axis=0
        )
    )
    np.testing.assert_allclose(w_of(run.run(1)), expected, rtol=1e-5)


def test_sites_of_many_steps_do_not_drag_the_model_to_their_optimum():
    training = plain_sgd(steps=None, batch_size=10, learning_rate=0.005)
    far = {
        name: np.linalg.norm(w_of((run := make_run(name, training)).run(400)) - optimum(run.sites))
        for name in ("fedavg", "fednova")
    }
    assert far["fednova"] < 0.5 * far["fedavg"]


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (7, 0.0), (12, 0.6)])
def test_effective_steps_count_what_momentum_repeats(steps, momentum):
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        moved += velocity
    assert effective_steps(steps, momentum) == pytest.approx(moved)
