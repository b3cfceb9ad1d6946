"""A Node and ``model.init``: what it needs the file for, and what it then sends."""

import pytest
from node_asker import NodeAsker
from waking import woken

from medfusion.config import load_config
from medfusion.data.task import Task
from medfusion.errors import ConfigError, FederationError
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import ARRAYS, read_error

OVERRIDES = (
    "model.modalities=['image']",
    "selection.method=none",
    "training.steps=1",
    "training.batch_size=2",
)


@pytest.fixture
def weights(cohort, tmp_path, monkeypatch):
    """A model folder in torchvision's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    task = Task.load(cohort / "task.toml")
    options = MedFusionNetOptions(modalities=("image",))
    model = build_model(options, task, seed=7)
    card = {
        "task": task.to_json(),
        "model": options.model_dump(mode="json"),
        "seed": 7,
        "selection": None,
        "selection_method": "none",
        "top_n": 1,
    }
    folder = tmp_path / "hub" / "checkpoints" / "first"
    save_model(folder, trainable_state(model), card)
    return folder


def ask(cohort, folder, model, *overrides, simulated=True, frozen=None):
    asker = NodeAsker(cohort, folder, *OVERRIDES, *overrides, simulated=simulated)
    return asker.ask("train", arrays=to_record(trainable_state(model)), frozen_sha256=frozen)


def coordinators(cohort, *overrides):
    config = load_config(cohort / "config.toml", [*OVERRIDES, *overrides])
    return woken(build_model(config.model, Task.load(config.run.task), seed=config.run.seed))


@pytest.mark.parametrize("privacy", ["true", "false"])
def test_frozen_stages_are_trained_around_and_not_sent(cohort, weights, tmp_path, privacy):
    overrides = ("model.init=first", "model.frozen_stages=2", f"privacy.enabled={privacy}")
    model = coordinators(cohort, *overrides)
    reply = ask(cohort, tmp_path / "state", model, *overrides, frozen=frozen_sha256(model))
    assert read_error(reply) is None
    sent, before = from_record(reply.array_records[ARRAYS]), trainable_state(model)
    assert sent.keys() == before.keys()
    assert not any(
        name.startswith(("image.streams.stem", "image.streams.stages.1")) for name in sent
    )
    assert (
        sent["image.streams.stages.2.0.conv1.weight"]
        != before["image.streams.stages.2.0.conv1.weight"]
    ).any()


def test_other_frozen_weights_are_refused(cohort, weights, tmp_path):
    overrides = ("model.init=first", "model.frozen_stages=1")
    model = coordinators(cohort, *overrides)
    error = read_error(ask(cohort, tmp_path / "state", model, *overrides, frozen="0" * 64))
    assert isinstance(error, FederationError)
    assert "frozen weights (text encoder, model.init) differ" in str(error)


def test_without_frozen_weights_a_node_needs_no_file(cohort, weights, tmp_path):
    """Not even the path of another machine disturbs it."""
    model = coordinators(cohort, "model.init=first")
    elsewhere = "model.init='/of/the/coordinator/first'"
    reply = ask(cohort, tmp_path / "state", model, elsewhere, simulated=False)
    assert read_error(reply) is None


def test_with_frozen_weights_a_node_needs_the_file(cohort, weights, tmp_path):
    overrides = ("model.init=first", "model.frozen_stages=1")
    model = coordinators(cohort, *overrides)
    weights.rename(weights.parent / "second")
    error = read_error(ask(cohort, tmp_path / "state", model, *overrides, simulated=False))
    assert isinstance(error, ConfigError)
    assert "no file" in str(error)
