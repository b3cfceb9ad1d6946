from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from replies import make_reply

from medfusion.config import StrategyOptions
from medfusion.errors import ConfigError
from medfusion.strategies.patient_weighted import PatientWeighted, RunFacts
from medfusion.training.options import TrainingOptions
from server.checkpoint import Checkpoint, CheckpointStore
from server.strategies import STRATEGIES, build_strategy

PATIENTS = {number: 10 * number for number in range(1, 6)}
OPTIONS = {
    "qfedavg": {"client_learning_rate": 0.1},
    "fedavgm": {"server_momentum": 0.9, "server_learning_rate": 0.5},
}


class OneNodeGrid(Grid):
    """Knows its nodes and nothing else: enough for a strategy's configuration."""

    def get_node_ids(self):
        return [1, 2, 3, 4, 5]

    set_run = create_message = push_messages = pull_messages = send_and_receive = None
    run = None


def train_round(strategy, number, arrays):
    """One round as the loop drives it, with updates that depend on the round and the model."""
    list(strategy.configure_train(number, arrays, ConfigRecord(), OneNodeGrid()))
    generator = np.random.default_rng(number)
    replies = []
    for node in range(1, 6):
        new = {n: a.numpy() + generator.normal(size=a.numpy().shape) for n, a in arrays.items()}
        reply = make_reply({n: v.astype(np.float32) for n, v in new.items()}, 10 * node)
        reply.content["metrics"]["train_loss"] = 0.5 + 0.1 * node
        reply.metadata.__dict__["_src_node_id"] = node
        replies.append(reply)
    aggregated, _ = strategy.aggregate_train(number, replies)
    return ArrayRecord({n: Array(a.numpy().astype(np.float32)) for n, a in aggregated.items()})


def numpy_of(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_goes_on_as_if_never_interrupted(name, tmp_path):
    def build():
        options = StrategyOptions(name=name, **OPTIONS.get(name, {}))
        strategy = build_strategy(options, min_sites=1 if name == "cyclic" else 5)
        if isinstance(strategy, PatientWeighted):
            strategy.serve(facts())
        return strategy

    def facts():
        names = {number: f"site{number}" for number in PATIENTS}
        sites = {
            names[number]: SimpleNamespace(
                patients_public=count, label_coverage=(1.0, 0.1 * number)
            )
            for number, count in PATIENTS.items()
        }
        known = SimpleNamespace(sites=sites, names=names)
        return RunFacts(known, TrainingOptions(optimizer="sgd"), ("x", "y"), frozenset({"a"}))

    start = ArrayRecord(
        {
            "a": Array(np.ones((2, 3), np.float32)),
            "b": Array(np.float32([0.5])),
            "c": Array(np.array(0.5, np.float32)),
        }
    )
    strategy, arrays = build(), start
    store = CheckpointStore(tmp_path, "run")
    for number in range(1, 5):
        arrays = train_round(strategy, number, arrays)
        if number == 2:
            store.save(Checkpoint(number, arrays, {"rounds": [1, 2]}), strategy)

    resumed_strategy = build()
    checkpoint = CheckpointStore(tmp_path, "run").load(resumed_strategy)
    assert checkpoint is not None
    assert (checkpoint.round, checkpoint.progress) == (2, {"rounds": [1, 2]})
    resumed = checkpoint.arrays
    for number in range(3, 5):
        resumed = train_round(resumed_strategy, number, resumed)
    for key, value in numpy_of(arrays).items():
        np.testing.assert_array_equal(numpy_of(resumed)[key], value)
        assert numpy_of(resumed)[key].shape == value.shape


def lists_of(arrays):
    return {name: array.tolist() for name, array in numpy_of(arrays).items()}


def test_the_average_of_the_models_is_kept_beside_the_model(tmp_path):
    strategy = build_strategy(StrategyOptions(name="fedavgm", **OPTIONS["fedavgm"]), min_sites=5)
    model = ArrayRecord({"b": Array(np.float32([1, 2])), "a": Array(np.float32([3]))})
    average = ArrayRecord({"b": Array(np.float32([5, 6])), "a": Array(np.float32([7]))})
    store = CheckpointStore(tmp_path, "run")
    for number, kept in ((1, average), (2, None)):
        store.save(Checkpoint(number, model, {}, kept), strategy)
        loaded = store.load(strategy)
        assert loaded is not None
        assert lists_of(loaded.arrays) == {"a": [3], "b": [1, 2]}
        assert (loaded.average is None) == (kept is None)
        if loaded.average is not None:
            assert lists_of(loaded.average) == {"a": [7], "b": [5, 6]}


def test_a_run_of_other_settings_is_refused(tmp_path):
    strategy = build_strategy(StrategyOptions(), min_sites=1)
    arrays = ArrayRecord({"a": Array(np.zeros(1, np.float32))})
    CheckpointStore(tmp_path, "one").save(Checkpoint(1, arrays, {}), strategy)
    with pytest.raises(ConfigError, match="other settings"):
        CheckpointStore(tmp_path, "two").load(strategy)


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    strategy = build_strategy(StrategyOptions(), min_sites=1)
    store = CheckpointStore(tmp_path, "run")
    assert store.load(strategy) is None
    (tmp_path / ".round-000001.safetensors.partial").write_bytes(b"half")
    assert store.load(strategy) is None
    for number in (1, 2, 3):
        arrays = ArrayRecord({"a": Array(np.full(1, number, np.float32))})
        store.save(Checkpoint(number, arrays, {}), strategy)
    loaded = store.load(strategy)
    assert loaded is not None
    assert loaded.arrays["a"].numpy().item() == 3
    assert len(list(tmp_path.iterdir())) == 2  # what was left half-written is gone as well
