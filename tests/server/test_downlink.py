"""Rounds whose model goes out compressed, over sites in memory that read it as Nodes do."""

import numpy as np
import pytest
from fake_federation import NAMES, PATIENTS, STEPS, Federation, arrays_of
from fake_sites import FakeSite
from flwr.app import RecordDict

from client.node.held_model import HeldModel
from client.node.secure_rounds import SecureRounds
from medfusion.errors import MedFusionError, StaleModelError
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.randomness import stream
from medfusion.transport.arrays import from_record, state_sha256
from medfusion.transport.compress import Codec
from medfusion.transport.requests import ARRAYS, Received, error_reply
from server.checkpoint import CheckpointStore

TOPK = ("compression.down.level=topk", "compression.down.fraction=0.3")
ROUNDS = 6


class ReadingSite(FakeSite):
    """Holds what came last, and moves each entry of it by another amount."""

    def begin(self, config, task):
        model = build_model(config.model, task, seed=config.run.seed)
        self.options = config.compression.down
        self.start = trainable_state(model)
        self.models = []  # by request: kind, round, digest of the model, bytes that came
        self.forget()
        return self

    def forget(self):
        """Start anew, as a Node does whose machine was restarted."""
        self.held = HeldModel(self.start, self.options)

    def answer(self, kind, content):
        if kind in ("train", "evaluate", "query.deliver"):
            came = sum(len(a.data) for a in content.get(ARRAYS, {}).values())
            try:
                request = self.held.whole(Received.parse(content))
            except MedFusionError as error:
                self.models.append((kind, None, came))
                return error_reply(error)
            content = RecordDict({**content, ARRAYS: request.arrays})
            self.models.append((kind, state_sha256(from_record(request.arrays)), came))
        return super().answer(kind, content)

    def train(self, content, number):
        reply = super().train(content, number)
        for name, array in reply[ARRAYS].items():
            value = array.numpy()
            wave = np.cos(np.arange(value.size)).reshape(value.shape).astype(np.float32)
            reply[ARRAYS][name] = type(array)(value + self.step * 0.3 * wave)
        return reply


def make(folder, *sets, site_class=ReadingSite):
    # A busy machine must not take a second message for one that came too late.
    part = Federation(folder, f"run.rounds={ROUNDS}", "server.round_timeout=60", *sets)
    for node, name in NAMES.items():
        site = site_class(name, part.task.to_json(), PATIENTS[name], STEPS[name])
        part.sites[name] = part.grid.sites[node] = site.begin(part.config, part.task)
    return part


def flat(arrays):
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def end(part):
    return flat(arrays_of(part.run()))


def digests(site, kind):
    return [digest for asked, digest, _ in site.models if asked == kind]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return end(make(tmp_path_factory.mktemp("plain")))


def test_off_is_the_same_bit_by_bit(tmp_path, plain):
    whole = make(tmp_path, "compression.down.byte_budget=1000000")
    np.testing.assert_array_equal(end(whole), plain)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm"])
@pytest.mark.parametrize("feedback", [True, False])
def test_the_model_is_that_of_the_equations(tmp_path, strategy, feedback):
    """x' = x + Q(z - x + e) with z of plain numpy: a mean, or a mean with momentum."""
    sets = [
        "compression.down.level=int4",
        f"compression.down.error_feedback={str(feedback).lower()}",
        f"strategy.name={strategy}",
        *(["strategy.server_momentum=0.5"] if strategy == "fedavgm" else []),
    ]
    part = make(tmp_path, *sets)
    loop, _ = part.loop()
    start = {name: array.numpy() for name, array in loop._start.items()}
    x, lost, speed = flat(start).astype(np.float64), 0.0, 0.0
    waves = np.concatenate([np.cos(np.arange(start[name].size)) for name in sorted(start)])
    codec = Codec("int4", x.size)
    share = np.array([PATIENTS[name] for name in STEPS]) / sum(PATIENTS.values())
    step = share @ np.array(list(STEPS.values()))
    for number in range(1, ROUNDS + 1):
        speed = speed * (0.5 if strategy == "fedavgm" else 0) + step * (number + 0.3 * waves)
        wanted = (speed + (lost if feedback else 0.0)).astype(np.float32)
        draws = stream(0, loop._settings.run_id, "downlink", number)
        read = codec.unpack(codec.pack(wanted, draws))
        x, lost = x + read, wanted.astype(np.float64) - read
    np.testing.assert_allclose(flat(arrays_of(loop.run())), x, rtol=1e-3, atol=2e-3)


def test_all_sites_train_evaluate_and_get_the_same_models(tmp_path):
    part = make(tmp_path, "compression.down.level=int8")
    loop, _ = part.loop()
    outcome = loop.run()
    seen = [(digests(site, "train"), digests(site, "evaluate")) for site in part.sites.values()]
    assert seen[0] == seen[1] == seen[2]
    trained, evaluated = seen[0]
    assert len(set(trained)) == ROUNDS
    assert trained[1:] == evaluated[:-1]  # a site that was told once is not told again
    assert evaluated[-1] == state_sha256(from_record(outcome.arrays))
    loop.deliver(outcome, {"card": 1})
    for site in part.sites.values():
        came = {
            kind: [size for asked, _, size in site.models if asked == kind]
            for kind in ("train", "evaluate", "query.deliver")
        }
        assert came["train"] == [0] * ROUNDS
        assert came["query.deliver"] == [0]
        assert digests(site, "query.deliver") == [evaluated[-1]]
        whole = sum(len(a.data) for a in outcome.arrays.values())
        assert all(0 < size < whole for size in came["evaluate"])


def test_the_running_average_goes_out_whole(tmp_path):
    part = make(tmp_path, *TOPK, "server.ema=0.5")
    outcome = part.run()
    north = part.sites["north"]
    assert digests(north, "evaluate")[-1] == state_sha256(from_record(outcome.arrays))
    assert None not in digests(north, "train")
    assert digests(north, "evaluate")[-1] not in digests(north, "train")


def test_a_resumed_run_goes_on_to_the_same_bit(tmp_path, monkeypatch):
    whole = end(make(tmp_path / "whole", *TOPK))
    genuine = CheckpointStore.save

    def dying(self, checkpoint, strategy):
        if checkpoint.round == 4:
            raise KeyboardInterrupt
        genuine(self, checkpoint, strategy)

    cut = make(tmp_path / "cut", *TOPK)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            cut.run()
    again = make(tmp_path / "cut", *TOPK)
    again.sites["west"].held = cut.sites["west"].held  # the others were restarted as well
    np.testing.assert_array_equal(end(again), whole)
    assert None not in digests(again.sites["west"], "train")
    assert digests(again.sites["east"], "train")[0] is None


@pytest.mark.parametrize("away", ["restarted", "missed"])
def test_a_site_that_lacks_the_model_before_gets_the_whole_at_once(tmp_path, away):
    timeout = "server.round_timeout=3" if away == "missed" else "server.round_timeout=60"
    part = make(tmp_path, *TOPK, "evaluation.every=0", timeout)
    west = part.sites["west"]

    def before(kind, number):
        if kind == "train" and number == 4 and away == "restarted":
            west.forget()
        part.grid.silent = {7} if kind == "train" and number == 3 and away == "missed" else set()

    part.grid.before = before
    outcome = part.run()
    trained, other = digests(west, "train"), digests(part.sites["east"], "train")
    at = 2 if away == "missed" else 3
    expected = other.copy()
    if away == "missed":
        del expected[2]
    assert trained[at] is None
    assert trained[:at] + trained[at + 1 :] == expected
    assert digests(west, "evaluate")[-1] == state_sha256(from_record(outcome.arrays))
    line = outcome.progress.rounds[3]
    assert line["sites"]["west"]["status"] == "ok"
    whole = sum(len(a.data) for a in outcome.arrays.values())
    assert line["bytes_down"] - outcome.progress.rounds[4]["bytes_down"] > 0.9 * whole


def test_a_site_that_cannot_read_even_the_whole_fails_its_round_and_no_more(tmp_path):
    part = make(tmp_path, *TOPK)
    west = part.sites["west"]

    def nothing(request):
        raise StaleModelError("still nothing")

    west.held.whole = nothing
    rounds = part.run().progress.rounds
    assert [line["sites"]["west"]["status"] for line in rounds] == ["failed"] * ROUNDS
    assert len(digests(west, "train")) == 2 * ROUNDS


class MaskedReadingSite(ReadingSite):
    """Masks its updates of the models that it reads."""

    def secagg(self, content, number):
        request = Received.parse(content)
        return self.secure.answer(request, request.request.settings)

    def train(self, content, number):
        request = Received.parse(content)
        return self.secure.masked(super().train(content, number), request, request.request.settings)


def test_the_way_down_goes_with_masks(tmp_path, plain):
    sets = [
        "compression.down.level=int8",
        "server.secure_aggregation={threshold=2, update_range=64}",
    ]
    part = make(tmp_path, *sets, site_class=MaskedReadingSite)
    for name, site in part.sites.items():
        secret, patients = name.encode().ljust(32), PATIENTS[name]
        site.secure = SecureRounds(name, secret, tmp_path / name, patients=patients)
        site.signer = site.secure.signer
    found = end(part)
    seen = [digests(site, "train") for site in part.sites.values()]
    assert seen[0] == seen[1] == seen[2]
    assert 0 < np.abs(found - plain).max() < 0.02 * np.abs(plain).max()
