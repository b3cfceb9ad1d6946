"""What a site remembers for the run's strategy: from what, and across restarts."""

import numpy as np
import pytest
import torch
from node_asker import NodeAsker

from client.node.strategy_memory import StrategyMemory
from client.node.trainer import Trainer
from medfusion.errors import FederationError
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.compress import Codec
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    COUNTED_KEY,
    GUIDE,
    MU_KEY,
    ROUND_KEY,
    Request,
    read_error,
    request_content,
)
from medfusion.transport.updates import moved_by

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(())}


class Asker(NodeAsker):
    usual = (
        "model.name=logistic",
        "run.rounds=4",
        "selection.method=none",
        "training.optimizer=sgd",
        "training.learning_rate=0.5",
        "training.steps=3",
    )

    def train(self, number, arrays, *, counted, guide=None, mu=None):
        content = request_content(Request(settings=self.settings), to_record(arrays))
        content[CONFIG][ROUND_KEY], content[CONFIG][COUNTED_KEY] = number, counted
        if mu is not None:
            content[CONFIG][MU_KEY] = mu
        if guide is not None:
            content[GUIDE] = to_record(guide)
        reply = self.node.handle("train", content)
        if error := read_error(reply):
            raise error
        record = reply.array_records[ARRAYS]
        return record if "scales" in record else from_record(record)

    @property
    def start(self):
        return from_record(self.record)

    def folder(self):
        return self.state.strategy_folder(self.settings.run_id) / "strategy"


def filled(like, seed):
    rng = torch.Generator().manual_seed(seed)
    return {name: 0.01 * torch.randn(value.shape, generator=rng) for name, value in like.items()}


@pytest.mark.parametrize("private", ["true", "false"])
def test_scaffolds_memory_follows_from_what_left_the_site(cohort, tmp_path, private):
    """Recomputed from the messages alone; under privacy these are releases that were paid for."""
    asker = Asker(cohort, tmp_path, "strategy.name=scaffold", f"privacy.enabled={private}")
    own = {name: torch.zeros_like(value) for name, value in asker.start.items()}
    model = asker.start
    for number in (1, 2, 3):
        guide = filled(model, number)
        sent = asker.train(number, model, counted=number - 1, guide=guide)
        own = {n: own[n] - guide[n] + (model[n] - sent[n]) / (3 * 0.5) for n in own}
        kept = StrategyMemory(asker.folder()).after(number, own)
        for name in own:
            torch.testing.assert_close(kept[name], own[name])
        model = sent


def test_what_is_remembered_moves_the_next_round(cohort, tmp_path):
    def second(folder, counted):
        asker = Asker(cohort, folder, "strategy.name=scaffold", "privacy.enabled=false")
        zero = {name: torch.zeros_like(value) for name, value in asker.start.items()}
        sent = asker.train(1, asker.start, counted=0, guide=zero)
        return asker.train(2, sent, counted=counted, guide=zero), asker, sent

    (plain, _, _), (moved, asker, sent) = (second(tmp_path / str(c), c) for c in (0, 1))
    # c - c_i = -c_i is added in each of 3 steps; the losses' own gradients change little.
    own = {name: (asker.start[name] - sent[name]) / (3 * 0.5) for name in sent}
    gaps = torch.cat([(moved[n] - plain[n]).flatten() for n in own])
    pushed = torch.cat([(3 * 0.5 * own[n]).flatten() for n in own])
    assert float(gaps @ pushed / (gaps.norm() * pushed.norm())) > 0.9


def test_feddyns_memory_follows_from_what_left_the_site(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "strategy.name=feddyn", "strategy.alpha=0.2")
    first = asker.train(1, asker.start, counted=0, mu=0.3)
    second = asker.train(2, first, counted=1, mu=0.5)
    kept = StrategyMemory(asker.folder()).after(2, first)
    for name, value in kept.items():
        expected = -0.3 * (first[name] - asker.start[name]) - 0.5 * (second[name] - first[name])
        torch.testing.assert_close(value, expected)


def test_a_restarted_node_replays_and_goes_on(cohort, tmp_path):
    sets = ("strategy.name=scaffold",)
    asker = Asker(cohort, tmp_path, *sets)
    guide = filled(asker.start, 7)
    first = asker.train(1, asker.start, counted=0, guide=guide)
    second = asker.train(2, first, counted=1, guide=guide)
    restarted = Asker(cohort, tmp_path, *sets)
    again = restarted.train(2, first, counted=1, guide=guide)
    for name in second:
        np.testing.assert_array_equal(again[name], second[name])
    with pytest.raises(FederationError, match="released already"):
        restarted.train(2, first, counted=0, guide=guide)


def test_a_round_that_did_not_count_leaves_no_trace(cohort, tmp_path):
    sets = ("strategy.name=scaffold", "privacy.enabled=false")
    one = Asker(cohort, tmp_path / "one", *sets)
    guide = filled(one.start, 7)
    first = one.train(1, one.start, counted=0, guide=guide)
    one.train(2, filled(first, 1), counted=1, guide=guide)  # its reply never arrived
    third = one.train(3, first, counted=1, guide=guide)
    other = Asker(cohort, tmp_path / "other", *sets)
    other.train(1, other.start, counted=0, guide=guide)
    expected = other.train(3, first, counted=1, guide=guide)
    for name in expected:
        np.testing.assert_array_equal(third[name], expected[name])
    assert sorted(path.name for path in one.folder().iterdir()) == [
        "round-000001.safetensors",
        "round-000003.safetensors",
    ]


def test_requests_that_cannot_be_gone_on_from_are_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "strategy.name=scaffold")
    zero = {name: torch.zeros_like(value) for name, value in asker.start.items()}
    with pytest.raises(FederationError, match=r"kept of round 1 .* restore strategies/"):
        asker.train(2, asker.start, counted=1, guide=zero)
    with pytest.raises(FederationError, match="expected an earlier one"):
        asker.train(2, asker.start, counted=2, guide=zero)
    with pytest.raises(FederationError, match="trainable parameters"):
        asker.train(1, asker.start, counted=0)


def test_memory_survives_bit_by_bit_and_a_half_written_file_is_not_seen(tmp_path):
    memory = StrategyMemory(tmp_path / "run")
    kept = {name: torch.randn(value.shape) for name, value in LIKE.items()}
    memory.keep(1, kept, counted=0)
    (tmp_path / "run" / ".round-000002.safetensors.abc.partial").write_bytes(b"half")
    memory.keep(2, LIKE, counted=1)
    assert len(list((tmp_path / "run").iterdir())) == 2
    found = StrategyMemory(tmp_path / "run").after(1, LIKE)
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    (tmp_path / "run" / "round-000001.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FederationError, match="damaged"):
        memory.after(1, LIKE)


def test_scaffolds_memory_is_of_what_the_coordinator_reads(cohort, tmp_path):
    """It computes the control variates from the compressed update, so the site must as well."""
    sets = ("strategy.name=scaffold", "privacy.enabled=false", "compression.level=int4")
    asker = Asker(cohort, tmp_path, *sets)
    model = asker.start
    codec = Codec.of(asker.settings.compression, sum(x.numel() for x in model.values()))
    guide = filled(model, 1)
    packed = asker.train(1, model, counted=0, guide=guide)
    read = codec.unpack({name: array.numpy() for name, array in packed.items()})
    sent = from_record(moved_by(to_record(model), read))
    kept = StrategyMemory(asker.folder()).after(1, model)
    for name in model:
        expected = -guide[name] + (model[name] - sent[name]) / (3 * 0.5)
        torch.testing.assert_close(kept[name], expected)


@pytest.mark.parametrize("private", ["true", "false"])
def test_what_compression_lost_follows_from_the_release(cohort, tmp_path, private):
    """Memory plus what was sent is the update as it was released, which the ledger keeps."""
    sets = ("compression.level=int4", f"privacy.enabled={private}")
    asker = Asker(cohort, tmp_path / "packed", *sets)
    codec = Codec.of(asker.settings.compression, sum(x.numel() for x in asker.start.values()))
    model, owed = asker.start, np.zeros(codec.size, np.float32)
    released = []
    genuine = Trainer._release

    def release(self, *arguments):
        reply = genuine(self, *arguments)
        released.append(from_record(reply.array_records[ARRAYS]))
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_release", release)
        for number in (1, 2, 3):
            packed = asker.train(number, model, counted=number - 1)
            read = codec.unpack({name: array.numpy() for name, array in packed.items()})
            update = np.concatenate(
                [(released[-1][name] - model[name]).numpy().ravel() for name in sorted(model)]
            )
            owed = owed + update - read
            kept = StrategyMemory(asker.folder().parent / "lost")
            found = kept.after(number, {"lost": torch.zeros(codec.size)})["lost"].numpy()
            np.testing.assert_allclose(found, owed, atol=1e-5)
    assert owed.any()
