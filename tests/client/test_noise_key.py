"""What a round's private noise is keyed by: what changes the gradients must change the noise."""

from dataclasses import replace
from itertools import count

import pytest
from node_asker import NodeAsker

from client.node import trainer
from medfusion.data.tensors import StudyTensors
from medfusion.training.loop import FitResult
from medfusion.transport.requests import read_error

USUAL = ('model.modalities=["tabular", "text"]', "selection.method=none", "run.rounds=2")


@pytest.fixture
def key(cohort, tmp_path, monkeypatch):
    """Ask a fresh Node for round 1; return the first words of the keystream it trains with."""
    found, folders = [], count()

    def fit(*_, **arguments):
        found.append(arguments["private"].words(8).tobytes())
        return FitResult(steps=1, loss=None, seconds=0.0)

    monkeypatch.setattr(trainer, "fit", fit)

    def ask(change=None):
        asker = NodeAsker(cohort, tmp_path / str(next(folders)), *USUAL, change=change)
        assert read_error(asker.ask("train")) is None
        return found.pop()

    return ask


def in_bfloat16(data):
    compute = data.config.compute.model_copy(update={"precision": "bfloat16"})
    return replace(data, config=data.config.model_copy(update={"compute": compute}))


def test_the_same_request_has_the_same_key(key):
    assert key() == key()


def test_another_precision_has_another_key(key):
    assert key(in_bfloat16) != key()


def test_notes_that_the_model_reads_otherwise_have_another_key(key, monkeypatch):
    """A tokenizer or an encoder comes from files, which may change between two requests."""
    usual = key()
    monkeypatch.setattr(StudyTensors, "notes_sha256", "0" * 64)
    assert key() != usual


def test_other_code_has_another_key(key, monkeypatch):
    usual = key()
    monkeypatch.setattr(trainer, "code_sha256", lambda: "0" * 64)
    assert key() != usual
