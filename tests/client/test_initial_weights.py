"""A Node and ``model.init``: what it needs the file for, and what it then sends."""

import pytest
from waking import woken

from client.node.node import Node
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data
from medfusion.errors import ConfigError, FederationError
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    ROUND_KEY,
    Request,
    read_error,
    request_content,
)
from server.rounds import run_settings

OVERRIDES = (
    "model.modalities=['image']",
    "selection.method=none",
    "training.steps=1",
    "training.batch_size=2",
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "cohort"
    write_cohort(folder, sites=1, patients=40, seed=1)
    return folder


@pytest.fixture
def weights(cohort, tmp_path, monkeypatch):
    """A model folder in torchvision's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    data = load_site_data(next((cohort / "sites").iterdir()))
    options = MedFusionNetOptions(modalities=("image",))
    model = build_model(options, data.task, seed=7)
    card = {
        "task": data.task.to_json(),
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
    config = load_config(cohort / "config.toml", [*OVERRIDES, *overrides])
    data = load_site_data(next((cohort / "sites").iterdir()))
    node = Node(data, NodeState(folder), b"secret", simulated=simulated)
    settings = run_settings(config, data.task)
    request = Request(settings=settings, frozen_sha256=frozen)
    content = request_content(request, to_record(trainable_state(model)))
    content[CONFIG][ROUND_KEY] = 1
    return node.handle("train", content)


def coordinators(cohort, *overrides):
    config = load_config(cohort / "config.toml", [*OVERRIDES, *overrides])
    data = load_site_data(next((cohort / "sites").iterdir()))
    return woken(build_model(config.model, data.task, seed=config.run.seed))


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
