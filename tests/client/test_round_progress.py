"""What a Node makes of a round's number: schedules run over the whole run."""

import numpy as np
import pytest
from node_asker import NodeAsker

from medfusion.errors import FederationError
from medfusion.transport.requests import ARRAYS, read_error


class Site(NodeAsker):
    """Trains one step on all patients, by plain gradient descent: changes are rate * gradient."""

    usual = (
        "model.name=logistic",
        "run.rounds=4",
        "privacy.enabled=false",
        "training.steps=1",
        "training.batch_size=1000",
        "training.optimizer=sgd",
        "training.learning_rate=1e-4",
    )

    def __init__(self, cohort, state, *overrides):
        super().__init__(cohort, state, *overrides)
        # The draws of a run hang on its id, which tells configs apart.
        self.settings = self.settings.model_copy(update={"run_id": "same"})

    def change(self, number):
        reply = self.ask("train", round=number).array_records[ARRAYS]
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
    warm.ask("train", round=1)
    np.testing.assert_array_equal(warm.change(2), cold.change(2))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("number", [0, 5])
def test_a_round_outside_the_run_is_refused(cohort, tmp_path, kind, number):
    error = read_error(Site(cohort, tmp_path).ask(kind, round=number))
    assert isinstance(error, FederationError)
    assert "rounds 1 to 4" in str(error)
