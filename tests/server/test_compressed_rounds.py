"""Rounds whose updates travel compressed, over sites in memory that compress as Nodes do."""

import numpy as np
import pytest
from fake_federation import NAMES, PATIENTS, STEPS, Federation, arrays_of
from fake_sites import FakeSite

from client.node.compressing import compressed
from client.node.strategy_memory import StrategyMemory
from medfusion.config import load_config
from medfusion.errors import ConfigError
from medfusion.randomness import stream
from medfusion.transport.requests import ARRAYS, Received
from server.checkpoint import CheckpointStore


class CompressingSite(FakeSite):
    """Moves each entry by another amount, so that rounding has something to lose."""

    def begin(self, folder):
        self.memory = StrategyMemory(folder)
        return self

    def train(self, content, number):
        request = Received.parse(content)
        reply = super().train(content, number)
        for name, array in reply[ARRAYS].items():
            value = array.numpy()
            wave = np.cos(np.arange(value.size)).reshape(value.shape).astype(np.float32)
            reply[ARRAYS][name] = type(array)(value + self.step * 0.3 * wave)
        settings = request.request.settings
        sent, self.read = compressed(
            reply, request, settings, self.memory, lambda: stream(0, self.name, number)
        )
        return sent


def make(folder, *sets):
    part = Federation(folder, "run.rounds=6", *sets)
    for node, name in NAMES.items():
        site = CompressingSite(name, part.task.to_json(), PATIENTS[name], STEPS[name])
        part.sites[name] = part.grid.sites[node] = site.begin(folder / name)
    return part


def end(part):
    return np.concatenate([value.ravel() for value in arrays_of(part.run()).values()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return end(make(tmp_path_factory.mktemp("plain")))


def test_off_is_the_same_bit_by_bit(tmp_path, plain):
    whole = make(tmp_path / "budget", "compression.byte_budget=1000000")
    np.testing.assert_array_equal(end(whole), plain)


@pytest.mark.parametrize(("level", "near"), [("bfloat16", 0.01), ("int8", 0.02), ("int4", 0.5)])
def test_the_model_is_near_that_of_plain_rounds(tmp_path, plain, level, near):
    found = end(make(tmp_path, f"compression.level={level}"))
    assert 0 < np.abs(found - plain).max() < near * np.abs(plain).max()


def test_feedback_brings_the_model_nearer(tmp_path, plain):
    far = {
        kept: np.linalg.norm(
            end(
                make(
                    tmp_path / kept,
                    "compression.level=topk",
                    "compression.fraction=0.3",
                    f"compression.error_feedback={kept}",
                )
            )
            - plain
        )
        for kept in ("true", "false")
    }
    assert far["true"] < 0.7 * far["false"]


def test_the_coordinator_reads_what_the_site_believes_it_read(tmp_path):
    part = make(tmp_path, "compression.level=int4", "run.rounds=1", "strategy.name=fedavg")
    outcome = part.run()
    mean = {
        name: np.average(
            [site.read[name].numpy() for site in part.sites.values()],
            axis=0,
            weights=[site.patients for site in part.sites.values()],
        )
        for name in outcome.arrays
    }
    for name, value in arrays_of(outcome).items():
        np.testing.assert_allclose(value, mean[name], rtol=1e-5, atol=1e-6)


def test_fewer_bytes_travel(tmp_path):
    def bytes_up(part):
        return part.run().progress.rounds[0]["bytes_up"]

    plain = bytes_up(make(tmp_path / "plain", "evaluation.every=0"))
    packed = bytes_up(make(tmp_path / "int8", "evaluation.every=0", "compression.level=int8"))
    size = sum(array.nbytes for array in arrays_of(make(tmp_path / "x").run()).values()) // 4
    assert plain - packed == 3 * (3 * size - 4 * -(-size // 256))


def test_a_resumed_run_goes_on_to_the_same_bit(tmp_path, monkeypatch):
    sets = ("compression.level=topk", "compression.fraction=0.3")
    whole = end(make(tmp_path / "whole", *sets))
    genuine = CheckpointStore.save

    def dying(self, checkpoint, strategy):
        if checkpoint.round == 4:
            raise KeyboardInterrupt
        genuine(self, checkpoint, strategy)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut", *sets).run()
    np.testing.assert_array_equal(end(make(tmp_path / "cut", *sets)), whole)


def test_a_round_that_did_not_count_leaves_no_trace(tmp_path):
    sets = ("compression.level=topk", "compression.fraction=0.3", "server.min_sites=1")

    def run(folder, *, wild):
        part = make(folder, *sets)
        site = part.sites["west"]
        genuine = site.train

        def train(content, number):
            if number != 3:
                return genuine(content, number)
            site.step = 1e30 if wild else 1.0
            sent = genuine(content, number)
            site.step = STEPS["west"]
            sent[ARRAYS].clear()  # refused by the coordinator
            return sent

        site.train = train
        return end(part)

    np.testing.assert_array_equal(
        run(tmp_path / "wild", wild=True), run(tmp_path / "calm", wild=False)
    )


def test_compression_under_masks_is_refused(tmp_path):
    path = Federation(tmp_path).folder.parent / "cohort" / "config.toml"
    sets = ["server.secure_aggregation={threshold=2}", "compression.level=int8"]
    with pytest.raises(ConfigError, match="a scale and places of its own"):
        load_config(path, sets)
