"""What a round's private noise is keyed by: what changes the gradients must change the noise."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from node_asker import NodeAsker

from client.node import selecting, trainer
from medfusion.data.tensors import StudyTensors
from medfusion.training.loop import FitResult
from medfusion.transport.arrays import from_record, to_record
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

    def ask(change=None, **request):
        asker = NodeAsker(cohort, tmp_path / str(next(folders)), *USUAL, change=change)
        if "arrays" in request:
            request["arrays"] = request["arrays"](asker)
        assert read_error(asker.ask("train", **request)) is None
        return found.pop()

    return ask


@pytest.fixture
def selection_key(cohort, tmp_path, monkeypatch):
    """Ask a fresh Node for its histograms; return the first words of their noise's keystream."""
    found, folders = [], count()

    def noised(values, *, keystream, **_):
        found.append(keystream.words(8).tobytes())
        return values

    monkeypatch.setattr(selecting, "noised", noised)

    def ask(*overrides, change=None):
        folder = tmp_path / str(next(folders))
        asker = NodeAsker(cohort, folder, "model.name=logistic", *overrides, change=change)
        asker.settings = asker.settings.model_copy(update={"run_id": "study"})  # else of the seed
        assert read_error(asker.ask("select", arrays=None)) is None
        return found.pop()

    return ask


def in_bfloat16(data):
    compute = data.config.compute.model_copy(update={"precision": "bfloat16"})
    return replace(data, config=data.config.model_copy(update={"compute": compute}))


def test_the_same_request_has_the_same_key(key):
    assert key() == key()


def test_another_precision_has_another_key(key):
    assert key(in_bfloat16) != key()


def moved(asker):
    state = from_record(asker.record)
    return to_record({name: value + 1e-3 for name, value in state.items()})


@pytest.mark.parametrize(
    "other",
    [
        {"round": 2},
        {"arrays": moved},
        {"mu": 0.5},
        {"selection": {"thresholds": [], "top_n": 1}},
    ],
    ids=["round", "model", "pull", "selection"],
)
def test_whatever_a_request_asks_otherwise_has_another_key(key, other):
    assert key(**other) != key()


def test_other_frozen_weights_have_another_key(key, monkeypatch):
    usual = key()
    monkeypatch.setattr(trainer, "frozen_sha256", lambda model: "0" * 64)
    assert key() != usual


def test_notes_that_the_model_reads_otherwise_have_another_key(key, monkeypatch):
    """A tokenizer or an encoder comes from files, which may change between two requests."""
    usual = key()
    monkeypatch.setattr(StudyTensors, "notes_sha256", "0" * 64)
    assert key() != usual


def test_other_code_has_another_key(key, monkeypatch):
    usual = key()
    monkeypatch.setattr(trainer, "code_sha256", lambda: "0" * 64)
    assert key() != usual


def test_the_histograms_key_changes_with_code_data_settings_and_plan(selection_key, monkeypatch):
    usual = selection_key()
    assert selection_key() == usual
    others = {
        selection_key(change=without_a_patient),
        selection_key("run.seed=9"),
        selection_key(change=with_another_delta),
    }
    monkeypatch.setattr(trainer, "code_sha256", lambda: "0" * 64)
    others.add(selection_key())
    assert len(others - {usual}) == 4


def without_a_patient(data):
    studies = data.studies.take(np.arange(1, len(data.studies)))
    return replace(data, studies=studies, split=data.split[1:])


def with_another_delta(data):
    policy = data.config.policy.model_copy(update={"delta": data.config.policy.delta / 2})
    return replace(data, config=data.config.model_copy(update={"policy": policy}))
