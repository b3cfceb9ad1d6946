"""SCAFFOLD and FedDyn against plain numpy, on quadratics whose optimum is known."""

import numpy as np
import pytest
from quadratics import WIDTH, QuadraticRun, make_sites, optimum, plain_sgd, w_of

from medfusion.config import StrategyOptions
from server.checkpoint import Checkpoint, CheckpointStore
from server.strategies import build_strategy

RULES = {"fedavg": "none", "scaffold": "scaffold", "feddyn": "feddyn"}


def make_run(name, *, patients=(40, 40, 40), training=None, options=None, **more):
    strategy = build_strategy(StrategyOptions(name=name, **(options or {})), min_sites=1)
    sites = make_sites(RULES[name], patients)
    return QuadraticRun(strategy, sites, training or plain_sgd(), **more)


def distance(run, rounds):
    return np.linalg.norm(w_of(run.run(rounds)) - optimum(run.sites))


@pytest.mark.parametrize("patients", [(40, 40, 40), (10, 70, 200, 35)])
def test_drift_is_corrected_where_fedavg_stays_off(patients):
    options = {"alpha": 1.0}
    assert distance(make_run("fedavg", patients=patients), 300) > 0.05
    assert distance(make_run("scaffold", patients=patients), 300) < 1e-4
    assert distance(make_run("feddyn", patients=patients, options=options), 600) < 1e-3


def test_drift_is_corrected_between_sites_of_unequal_steps():
    training = plain_sgd(steps=None, batch_size=10)
    patients = (20, 100, 200)
    assert distance(make_run("fedavg", patients=patients, training=training), 300) > 0.05
    assert distance(make_run("scaffold", patients=patients, training=training), 300) < 1e-4


def scaffold_by_the_paper(sites, training, rounds, server_rate, answering):
    """Algorithm 1 with Option II, uniform weights."""
    x, c, own = np.zeros(WIDTH), np.zeros(WIDTH), {name: np.zeros(WIDTH) for name in sites}
    eta, steps = training.learning_rate, training.steps
    for number in range(1, rounds + 1):
        heard = answering(number)
        delta_y, delta_c = [], []
        for name in heard:
            y = x.copy()
            for _ in range(steps):
                y = y - eta * (sites[name].gradient(y) - own[name] + c)
            new = own[name] - c + (x - y) / (steps * eta)
            delta_y.append(y - x)
            delta_c.append(new - own[name])
            own[name] = new
        x = x + server_rate * np.mean(delta_y, axis=0)
        c = c + len(heard) / len(sites) * np.mean(delta_c, axis=0)
    return x


def feddyn_by_the_paper(sites, training, rounds, alpha, answering):
    """Algorithm 1, gradient steps in place of exact minimisation, uniform weights."""
    theta, h, own = np.zeros(WIDTH), np.zeros(WIDTH), {name: np.zeros(WIDTH) for name in sites}
    for number in range(1, rounds + 1):
        heard = answering(number)
        found = []
        for name in heard:
            w = theta.copy()
            for _ in range(training.steps):
                gradient = sites[name].gradient(w) - own[name] + alpha * (w - theta)
                w = w - training.learning_rate * gradient
            own[name] = own[name] - alpha * (w - theta)
            found.append(w)
        h = h - alpha / len(sites) * np.sum([w - theta for w in found], axis=0)
        theta = np.mean(found, axis=0) - h / alpha
    return theta


LOST = {2: ("a",), 3: ("b", "c"), 5: ("a",)}


def answering(number):
    return [name for name in "abc" if name not in LOST.get(number, ())]


@pytest.mark.parametrize("rounds", [1, 4, 9])
def test_steps_are_those_of_the_papers_also_when_replies_are_lost(rounds):
    run = make_run("scaffold", options={"server_learning_rate": 0.7}, unheard=LOST)
    expected = scaffold_by_the_paper(run.sites, run.training, rounds, 0.7, answering)
    np.testing.assert_allclose(w_of(run.run(rounds)), expected, rtol=2e-4, atol=2e-5)
    run = make_run("feddyn", options={"alpha": 0.4}, unheard=LOST)
    expected = feddyn_by_the_paper(run.sites, run.training, rounds, 0.4, answering)
    np.testing.assert_allclose(w_of(run.run(rounds)), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_resumed_run_goes_on_to_the_same_bit(name, tmp_path):
    lost = {2: ("a",), 4: ("b",)}
    whole = w_of(make_run(name, unheard=lost).run(7))
    first = make_run(name, unheard=lost)
    arrays = first.run(3)
    store = CheckpointStore(tmp_path, "run")
    store.save(Checkpoint(3, arrays, {}), first.strategy)
    first.round(4, arrays)  # the sites trained once more before the coordinator died
    second = make_run(name, unheard=lost)
    second.sites = first.sites
    loaded = store.load(second.strategy)
    again = second.run(7, start=loaded.arrays, first=4)
    np.testing.assert_array_equal(w_of(again), whole)


def test_a_site_that_was_refused_does_not_pull_the_others():
    """A lost reply that exploded leaves no trace: neither at the coordinator nor at the site."""
    lost = {3: ("b",)}
    calm = make_run("scaffold", unheard=lost)
    wild = make_run("scaffold", unheard=lost)
    site, centre = wild.sites["b"], wild.sites["b"].centre
    genuine = site.train

    def explode(content, training):
        site.centre = 1e12 + centre if int(content["config"]["server-round"]) == 3 else centre
        return genuine(content, training)

    site.train = explode
    np.testing.assert_array_equal(w_of(wild.run(6)), w_of(calm.run(6)))
