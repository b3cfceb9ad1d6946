"""What a Node makes of a round's number: schedules run over the whole run."""

import numpy as np
import pytest

from client.node.node import Node
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data
from medfusion.errors import FederationError
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.transport.arrays import to_record
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    ROUND_KEY,
    Request,
    read_error,
    request_content,
)
from server.rounds import run_settings


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("progress") / "cohort"
    write_cohort(folder, sites=1, patients=60, seed=1)
    return folder


class Site:
    """A Node, and requests to train from a model at its initial weights."""

    def __init__(self, cohort, state, *overrides):
        # One step on all patients, by plain gradient descent: the change is rate * gradient.
        fixed = ("model.name=logistic", "run.rounds=4", "privacy.enabled=false")
        step = ("steps=1", "batch_size=1000", "optimizer=sgd", "learning_rate=1e-4")
        config = load_config(
            cohort / "config.toml", [*fixed, *(f"training.{key}" for key in step), *overrides]
        )
        data = load_site_data(next((cohort / "sites").iterdir()))
        # The draws of a run hang on its id, which tells configs apart.
        self.settings = run_settings(config, data.task).model_copy(update={"run_id": "same"})
        self.node = Node(data, NodeState(state), b"secret", simulated=True)
        self.record = to_record(trainable_state(build_model(config.model, data.task, seed=0)))

    def ask(self, number):
        content = request_content(Request(settings=self.settings), self.record)
        content[CONFIG][ROUND_KEY] = number
        return self.node.handle("train", content)

    def change(self, number):
        reply = self.ask(number).array_records[ARRAYS]
        return np.concatenate(
            [(reply[name].numpy() - self.record[name].numpy()).ravel() for name in self.record]
        )


def test_a_cosine_falls_from_step_to_step_of_every_round(cohort, tmp_path):
    # At a low rate the second step's gradient is the same with and without the schedule.
    first = Site(cohort, tmp_path / "a")
    both = Site(cohort, tmp_path / "b", "training.steps=2")
    falling = Site(cohort, tmp_path / "c", "training.steps=2", "training.schedule=cosine")
    for number in range(1, 5):
        one = first.change(number)
        two = both.change(number) - one
        done = np.pi * (np.array([0, 0.5]) + number - 1) / 4
        early, late = (1 + np.cos(done)) / 2
        expected = early * one + late * two
        found = falling.change(number)
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_restarted_node_goes_on_at_the_same_rate(cohort, tmp_path):
    warm, cold = (
        Site(cohort, tmp_path / name, "training.schedule=cosine") for name in ("warm", "cold")
    )
    warm.ask(1)
    np.testing.assert_array_equal(warm.change(2), cold.change(2))


@pytest.mark.parametrize("number", [0, 5])
def test_a_round_outside_the_run_is_refused(cohort, tmp_path, number):
    error = read_error(Site(cohort, tmp_path).ask(number))
    assert isinstance(error, FederationError)
    assert "rounds 1 to 4" in str(error)
