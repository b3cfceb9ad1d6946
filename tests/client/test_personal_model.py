"""A model of the site's own: what it minimises, and that nothing that leaves knows of it."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from node_asker import NodeAsker
from tabular_cohort import write_ward

from client.node.selecting import one_per_patient
from client.node.trainer import Trainer
from medfusion.data.split import TRAIN
from medfusion.models.contract import trainable_state
from medfusion.models.saved import PERSONAL, load_model
from medfusion.objectives.multilabel import mean_loss
from medfusion.transport.requests import read_error

RATE = "personalisation.learning_rate=1.0"


class Asker(NodeAsker):
    usual = (
        "model.name=logistic",
        "selection.method=none",
        "training.optimizer=sgd",
        "training.batch_size=1000",
    )

    def deliver(self):
        """Deliver the initial model, which is all zero; return the folder it is kept in."""
        card = {
            "schema": 1,
            "task": self.data.task.to_json(),
            "task_sha256": self.settings.task_sha256,
            "model": self.settings.model.model_dump(mode="json"),
            "seed": self.settings.seed,
            "selection": None,
            "selection_method": self.settings.selection.method,
            "top_n": self.settings.selection.top_n,
        }
        assert read_error(self.ask("deliver", card=card)) is None
        return self.state.model_folder(self.settings.run_id)


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("personal") / "ward", sites=("north",)).parent


def distance(folder):
    own, common = (load_model(path).module for path in (folder / PERSONAL, folder))
    pairs = zip(trainable_state(own).values(), trainable_state(common).values(), strict=True)
    return float(torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm())


def test_none_is_made_unless_asked_for(ward, tmp_path):
    folder = Asker(ward, tmp_path).deliver()
    assert not (folder / PERSONAL).exists()
    assert (folder / "model.json").exists()


def test_steps_lead_away_and_the_pull_keeps_near(ward, tmp_path):
    def reached(pull):
        sets = (RATE, "personalisation.steps=60", f"personalisation.pull={pull}")
        return distance(Asker(ward, tmp_path / str(pull), *sets).deliver())

    far = [reached(pull) for pull in (0.0, 0.1, 1.0)]
    assert far[0] > 1.5 * far[1] > 1.5 * far[2] > 0


def test_dittos_problem_is_solved(ward, tmp_path, monkeypatch):
    """Where it is, the loss's gradient and the pull cancel; found by autograd on all studies."""
    pull = 0.2
    sets = (RATE, "personalisation.steps=400", f"personalisation.pull={pull}")
    asker = Asker(ward, tmp_path, *sets, change=_one_study_each)
    prepared = {}
    genuine = Trainer._prepare

    def prepare(self, part, selection):
        found = genuine(self, part, selection)
        prepared["train"], prepared["model"] = found, self._model
        return found

    monkeypatch.setattr(Trainer, "_prepare", prepare)
    asker.deliver()
    model, train = copy.deepcopy(prepared["model"]), prepared["train"]
    model.zero_grad()
    inputs = train.inputs(torch.arange(len(train.labels)), torch.device("cpu"))
    mean_loss(model(inputs), train.labels, train.known).backward()
    for value in trainable_state(model).values():  # the common model is all zero
        torch.testing.assert_close(value.grad, -pull * value.detach(), rtol=0, atol=2e-4)
        assert value.any()


def _one_study_each(data):
    studies = one_per_patient(data.part(TRAIN))
    return replace(data, studies=studies, split=np.full(len(studies), TRAIN, np.int8))


@pytest.mark.parametrize("private", ["true", "false"])
def test_what_leaves_does_not_know_of_it(ward, tmp_path, private):
    """The ledger, and a reply asked for again after the delivery, are as before it."""
    sets = (RATE, "personalisation.steps=5", f"privacy.enabled={private}", "run.rounds=2")
    asker = Asker(ward, tmp_path, *sets)
    first = asker.ask("train")
    head = asker.node._ledger.book.head
    folder = asker.deliver()
    assert distance(folder) > 0
    assert asker.node._ledger.book.head == head
    assert asker.ask("train").array_records == first.array_records
