"""What a site keeps of the model: that it never leaves, and where it comes from."""

import pytest
import torch
from node_asker import NodeAsker
from tabular_cohort import write_ward
from torch.optim.optimizer import register_optimizer_step_post_hook

from client.node.strategy_memory import StrategyMemory
from client.node.trainer import Trainer
from medfusion.errors import ConfigError
from medfusion.models.contract import trainable_state
from medfusion.models.local_parts import local_parts
from medfusion.models.saved import load_model
from medfusion.training.loop import fit
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    COUNTED_KEY,
    ROUND_KEY,
    Request,
    read_error,
    request_content,
)


class Asker(NodeAsker):
    usual = (
        "model.name=medfusion_net",
        "model.size=tiny",
        "selection.method=none",
        "run.rounds=3",
        "training.steps=2",
        "training.optimizer=sgd",
        "training.learning_rate=0.5",
        "personalisation.local=head",
    )

    def send(self, kind, number, arrays, *, counted, **parts):
        content = request_content(Request(settings=self.settings, **parts), to_record(arrays))
        content[CONFIG][ROUND_KEY], content[CONFIG][COUNTED_KEY] = number, counted
        reply = self.node.handle(kind, content)
        if error := read_error(reply):
            raise error
        return reply

    @property
    def kept(self):
        return local_parts(self.model, "head")

    @property
    def shared(self):
        return {n: v for n, v in trainable_state(self.model).items() if n not in self.kept}


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("own") / "ward", sites=("north",)).parent


@pytest.mark.parametrize("private", ["true", "false"])
def test_the_head_stays_and_is_that_of_the_release(ward, tmp_path, monkeypatch, private):
    asker = Asker(ward, tmp_path, f"privacy.enabled={private}")
    released, genuine = [], Trainer._release

    def release(self, *arguments):
        reply = genuine(self, *arguments)
        released.append(from_record(reply.array_records[ARRAYS]))
        return reply

    monkeypatch.setattr(Trainer, "_release", release)
    model, started = asker.shared, []

    def noting(net, *arguments, **named):
        started.append({n: v.detach().clone() for n, v in trainable_state(net).items()})
        return fit(net, *arguments, **named)

    monkeypatch.setattr("client.node.trainer.fit", noting)
    for number in (1, 2):
        reply = asker.send("train", number, model, counted=number - 1)
        sent = from_record(reply.array_records[ARRAYS])
        assert set(sent) == set(asker.shared)
        kept = {name: released[-1][name] for name in asker.kept}
        found = StrategyMemory(asker.state.strategy_folder(asker.settings.run_id) / "own").after(
            number, kept
        )
        for name in kept:
            assert torch.equal(found[name], kept[name])
        model = sent
    for name in asker.kept:  # the second round goes on from the first one's head
        assert torch.equal(started[1][name], released[0][name])
        assert not torch.equal(started[0][name], started[1][name])


def test_the_delivered_model_has_the_sites_own_head(ward, tmp_path):
    asker = Asker(ward, tmp_path)
    sent = from_record(asker.send("train", 1, asker.shared, counted=0).array_records[ARRAYS])
    folder = asker.state.strategy_folder(asker.settings.run_id) / "own"
    like = {n: v for n, v in trainable_state(asker.model).items() if n in asker.kept}
    own = StrategyMemory(folder).after(1, like)
    card = {
        "schema": 1,
        "task": asker.data.task.to_json(),
        "task_sha256": asker.settings.task_sha256,
        "model": asker.settings.model.model_dump(mode="json"),
        "seed": asker.settings.seed,
        "selection": None,
        "selection_method": "none",
        "top_n": asker.settings.selection.top_n,
    }
    asker.send("deliver", 0, sent, counted=1, card=card)
    saved = trainable_state(load_model(asker.state.model_folder(asker.settings.run_id)).module)
    for name, value in saved.items():
        assert torch.equal(value, own[name] if name in own else sent[name])
    asker.send("deliver", 0, sent, counted=1, card=card)  # its reply was lost
    again = trainable_state(load_model(asker.state.model_folder(asker.settings.run_id)).module)
    assert all(torch.equal(again[name], value) for name, value in saved.items())
    assert folder.exists()
    asker.state.forget_strategies_of_delivered(but="another-run")
    assert not folder.exists()


def test_a_round_in_turns_moves_the_head_alone_first(ward, tmp_path, monkeypatch):
    asker = Asker(ward, tmp_path, "personalisation.own_steps=1", "privacy.enabled=false")
    models, moved = [], []

    def noting(net, *arguments, **named):
        models.append(net)
        return fit(net, *arguments, **named)

    def note(*_):
        moved.append({n: v.detach().clone() for n, v in trainable_state(models[0]).items()})

    monkeypatch.setattr("client.node.trainer.fit", noting)
    hook = register_optimizer_step_post_hook(note)
    try:
        asker.send("train", 1, asker.shared, counted=0)
    finally:
        hook.remove()
    first, second = moved
    assert all(torch.equal(first[name], value) for name, value in asker.shared.items())
    assert all(torch.equal(first[name], second[name]) for name in asker.kept)
    assert any(not torch.equal(second[name], value) for name, value in asker.shared.items())


def test_a_round_that_would_train_nothing_shared_is_refused(ward, tmp_path):
    asker = Asker(ward, tmp_path)
    by_epochs = asker.settings.training.model_copy(update={"steps": None})
    turns = asker.settings.personalisation.model_copy(update={"own_steps": 50})
    changes = {"training": by_epochs, "personalisation": turns}
    asker.settings = asker.settings.model_copy(update=changes)
    with pytest.raises(ConfigError, match=r"own_steps = 50: this site takes \d+ in a round"):
        asker.send("train", 1, asker.shared, counted=0)
