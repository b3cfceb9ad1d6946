"""A run against sites in memory: what it computes, and what it does when sites misbehave."""

import json
import os
import time

import numpy as np
import pytest
from fake_sites import FakeGrid, FakeSite
from flwr.app import Array
from rich.console import Console
from safetensors.numpy import load_file
from tabular_cohort import write_ward

from medfusion.config import load_config
from medfusion.data.task import Task
from medfusion.errors import ConfigError, DataError, FederationError
from medfusion.models.contract import Model
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    METRICS,
    REPLY,
    ROUND_KEY,
    WEIGHT_KEY,
    error_reply,
    reply_with,
)
from server.checkpoint import CheckpointStore
from server.progress import RunProgress
from server.results import model_card, write_results
from server.roster import call_roll
from server.roster_grid import RosterGrid
from server.rounds import RoundLoop, run_settings
from server.run_state import RunContext
from server.strategies import build_strategy

NAMES = {7: "west", 3: "east", 5: "north"}  # node ids are not in the order of the names
PATIENTS = {"west": 10, "east": 20, "north": 70}
STEPS = {"west": 1.0, "east": -2.0, "north": 0.5}


class Federation:
    """Three sites and the parts of a run, rounds in ``folder``."""

    def __init__(self, folder, *overrides):
        path = folder / "cohort" / "config.toml"
        if not path.exists():
            write_ward(path.parent, patients=4)
        timeout = ["server.round_timeout=0.3", "server.min_sites=2", "run.rounds=3"]
        self.config = load_config(path, [*timeout, *overrides])
        self.task = Task.load(self.config.run.task)
        self.folder = folder / "run"
        self.folder.mkdir(exist_ok=True)
        self.sites = {
            name: FakeSite(name, self.task.to_json(), PATIENTS[name], STEPS[name])
            for name in PATIENTS
        }
        self.grid = FakeGrid({node: self.sites[name] for node, name in NAMES.items()})
        self.warnings = []

    def roll(self):
        return call_roll(self.grid, self.config, self.task, warn=self.warnings.append)

    def loop(self):
        context = RunContext(
            self.grid, self.config, self.task, self.roll(), {}, self.folder, simulated=False
        )
        strategy = build_strategy(self.config.strategy, min_sites=self.config.server.min_sites)
        store = CheckpointStore(self.folder / "checkpoint", "settings")
        loop = RoundLoop(context, strategy, store, RunProgress(Console(quiet=True)))
        return loop, context

    def run(self):
        return self.loop()[0].run()

    def trained(self, name):
        return [number for kind, number, _ in self.sites[name].asked if kind == "train"]


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


def arrays_of(outcome):
    return {name: array.numpy() for name, array in outcome.arrays.items()}


def spoil(site, kind, change):
    """Let ``change`` edit what a site answers."""
    genuine = getattr(site, kind)

    def answer(content, number):
        reply = genuine(content, number)
        return change(reply, number) or reply

    setattr(site, kind, answer)


def moved(outcome):
    """How far every parameter went from the start (all go as far)."""
    (bias,) = (array for name, array in arrays_of(outcome).items() if name.endswith("bias"))
    return bias


def test_fedavg_is_the_weighted_mean_in_the_order_of_names(federation):
    outcome = federation.run()
    model = federation.loop()[0]._start
    expected = {name: array.numpy() for name, array in model.items()}
    names = sorted(PATIENTS)
    for number in (1, 2, 3):
        for key, value in expected.items():
            expected[key] = sum(  # floats are not associative: equality needs the same order
                (value + STEPS[name] * number).astype(np.float32) * (PATIENTS[name] / 100)
                for name in names
            )
    for key, value in arrays_of(outcome).items():
        np.testing.assert_array_equal(value, expected[key])
    assert list(outcome.progress.rounds[0]["sites"]) == names


def test_every_request_names_the_frozen_weights(federation):
    loop, context = federation.loop()
    outcome = loop.run()
    card = model_card(context, outcome)
    loop.deliver(outcome, card)
    requests = [
        (kind, r) for kind, _, r in federation.sites["east"].asked if "describe" not in kind
    ]
    assert {kind for kind, _ in requests} == {"query.select", "train", "evaluate", "query.deliver"}
    assert {request["frozen_sha256"] for _, request in requests} == {card["frozen_sha256"]}
    assert len(card["frozen_sha256"]) == 64


@pytest.mark.parametrize("damage", ["nan", "shape", "name", "dtype", "weight", "garbage", "metric"])
def test_a_site_whose_model_is_not_usable_is_left_out(federation, damage):
    def change(reply, number):
        arrays = reply[ARRAYS]
        name = next(iter(arrays))
        value = arrays[name].numpy()
        if damage == "nan":
            arrays[name] = Array(value * np.float32("nan"))
        elif damage == "shape":
            arrays[name] = Array(value[..., :-1])
        elif damage == "name":
            arrays["other"] = arrays.pop(name)
        elif damage == "dtype":
            arrays[name] = Array(value.astype(np.float64))
        elif damage == "weight":
            reply[METRICS][WEIGHT_KEY] = 10**9
        elif damage == "metric":
            reply[METRICS]["more"] = 1.0
        else:
            arrays[name].data = b"garbage"

    spoil(federation.sites["north"], "train", change)
    outcome = federation.run()
    for line in outcome.progress.rounds:
        status = {name: site["status"] for name, site in line["sites"].items()}
        assert status == {"east": "ok", "north": "failed", "west": "ok"}
    step = (10 * 1.0 + 20 * -2.0) / 30 * (1 + 2 + 3)
    np.testing.assert_allclose(moved(outcome), step, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, [1], [1, 2], "11"])
def test_a_site_that_does_not_say_what_it_selected_is_left_out(tmp_path, mask):
    federation = Federation(tmp_path, "selection.method=local")
    for name, site in federation.sites.items():

        def change(reply, number, name=name):
            selected = mask if name == "north" else [1, 0]
            if selected is not None:
                reply[REPLY] = reply_with({"selected": selected})[REPLY]

        spoil(site, "train", change)
    outcome = federation.run()
    for line in outcome.progress.rounds:
        status = {name: site["status"] for name, site in line["sites"].items()}
        assert status == {"east": "ok", "north": "failed", "west": "ok"}


def test_wrong_weights_of_too_many_sites_end_the_run(federation):
    def change(reply, number):
        reply[METRICS][WEIGHT_KEY] = 1

    for name in ("east", "west"):
        spoil(federation.sites[name], "train", change)
    with pytest.raises(FederationError, match=r"1 of 3 .*expected the 20 patients"):
        federation.run()


def test_a_model_that_diverges_everywhere_is_called_so(federation):
    def change(reply, number):
        for name in reply[ARRAYS]:
            reply[ARRAYS][name] = Array(reply[ARRAYS][name].numpy() + np.float32("inf"))

    for site in federation.sites.values():
        spoil(site, "train", change)
    with pytest.raises(FederationError, match=r"diverged.*lower training.learning_rate"):
        federation.run()


@pytest.mark.parametrize("kind", ["select", "evaluate"])
@pytest.mark.parametrize("damage", ["nan", "shape", "huge", "weight"])
def test_histograms_that_are_not_counts_are_left_out(federation, kind, damage):
    plain = federation.run()
    other = Federation(federation.folder.parent / "other")

    def change(reply, number):
        array = reply[ARRAYS]["histograms"].numpy().copy()
        if damage == "nan":
            array[0] = np.nan
        elif damage == "huge":
            array[0] = 1e300
        elif damage == "shape":
            array = array[:, :, 1:]
        else:
            reply[METRICS][WEIGHT_KEY] = 0
        reply[ARRAYS]["histograms"] = Array(array)

    spoil(other.sites["north"], kind, change)
    outcome = other.run()
    assert set(plain.progress.histograms) == set(PATIENTS)
    if kind == "evaluate":
        assert set(outcome.progress.histograms) == {"east", "west"}
    else:
        assert outcome.progress.selection != plain.progress.selection


def test_a_quorum_lost_in_the_middle_ends_the_run_in_time(federation):
    def leave(kind, number):
        if number == 2:
            for node in (3, 5):
                federation.grid.sites.pop(node, None)

    federation.grid.before = leave
    begin = time.monotonic()
    with pytest.raises(FederationError, match="expected at least 2"):
        federation.run()
    assert time.monotonic() - begin < 5
    assert len((federation.folder / "rounds.jsonl").read_text().splitlines()) == 1
    assert not (federation.folder / "summary.json").exists()


def test_a_quorum_that_is_lost_between_rounds_ends_the_run_in_time(federation):
    genuine = RunProgress.round_done

    def leave(show, line, *, rounds):
        genuine(show, line, rounds=rounds)
        federation.grid.sites = {7: federation.sites["west"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunProgress, "round_done", leave)
        with pytest.raises(FederationError, match=r"at least 2 connected sites.*1 of the 3"):
            federation.run()


def test_one_site_that_leaves_costs_nothing_but_itself(federation):
    def leave(kind, number):
        if (kind, number) == ("evaluate", 1):
            federation.grid.sites.pop(5, None)

    federation.grid.before = leave
    outcome = federation.run()
    assert [len(line["sites"]) for line in outcome.progress.rounds] == [3, 2, 2]


def test_a_site_that_joins_late_is_never_asked(federation):
    late = FakeSite("late", federation.task.to_json(), 5, 100.0)

    def join(kind, number):
        if kind == "train":
            federation.grid.sites[9] = late

    federation.grid.before = join
    loop, context = federation.loop()
    outcome = loop.run()
    loop.deliver(outcome, model_card(context, outcome))
    assert 9 in federation.grid.sites
    assert late.asked == []


def test_strategies_count_and_draw_from_one_list(federation):
    roster = federation.roll()
    view = RosterGrid(federation.grid, roster, quorum=2, timeout=0.2)
    assert list(view.get_node_ids()) == [3, 5, 7]
    federation.grid.sites.pop(5)
    assert list(view.get_node_ids()) == [3, 5, 7]
    fresh = RosterGrid(federation.grid, roster, quorum=2, timeout=0.2)
    assert list(fresh.get_node_ids()) == [3, 7]


def test_a_draw_of_sites_does_not_depend_on_the_order_of_connection(tmp_path):
    drawn = []
    for turn in range(4):
        part = Federation(tmp_path / str(turn), "strategy.fraction_train=0.4", "server.min_sites=1")
        part.run()
        drawn.append({name: part.trained(name) for name in PATIENTS})
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert sum(map(len, drawn[0].values())) == 3


def test_a_silent_node_is_left_out_with_a_warning(federation):
    federation.grid.silent.add(5)
    roster = federation.roll()
    assert list(roster.sites) == ["east", "west"]
    assert roster.nodes == [3, 7]
    assert len(federation.warnings) == 1
    assert "node 5 is left out" in federation.warnings[0]
    federation.grid.silent.add(3)
    with pytest.raises(FederationError, match="expected at least 2"):
        federation.roll()


def test_an_answered_error_ends_the_roll_call_at_once(tmp_path):
    federation = Federation(tmp_path, "server.round_timeout=60.0")
    federation.grid.silent.add(3)
    federation.sites["north"].describe = lambda content, number: error_reply(DataError("row 5"))
    begin = time.monotonic()
    with pytest.raises(DataError, match="node 5: row 5"):
        federation.roll()
    assert time.monotonic() - begin < 5


def test_a_site_with_the_features_in_another_order_is_refused(federation):
    task = federation.task.to_json()
    task["features"] = dict(reversed(task["features"].items()))
    federation.sites["north"].task = task
    with pytest.raises(
        FederationError, match=r"site 'north'.*differs from the run's in \[features\] "
    ):
        federation.roll()


def test_two_sites_of_one_name_are_refused(federation):
    federation.sites["north"].name = "east"
    with pytest.raises(FederationError, match="two called 'east'"):
        federation.roll()


def test_more_epsilon_than_a_site_allows_is_refused(tmp_path):
    federation = Federation(tmp_path, "privacy.enabled=true", "privacy.target_epsilon=9")
    with pytest.raises(ConfigError, match="allows at most 8"):
        federation.roll()


@pytest.mark.parametrize(("strategy", "ema"), [("fedavg", 0.0), ("fedavg", 0.7), ("fedadam", 0.7)])
def test_a_run_that_failed_goes_on_to_the_same_result(tmp_path, strategy, ema):
    settings = (f"strategy.name={strategy}", f"server.ema={ema}")
    whole = Federation(tmp_path / "whole", *settings)
    expected = whole.run()
    cut = Federation(tmp_path / "cut", *settings)
    cut.grid.before = lambda kind, number: cut.grid.silent.update({3, 5} if number == 3 else ())
    with pytest.raises(FederationError):
        cut.run()
    (cut.folder / "rounds.jsonl").unlink()
    again = Federation(tmp_path / "cut", *settings)
    outcome = again.run()
    assert again.trained("east") == [3]
    for key, value in arrays_of(expected).items():
        np.testing.assert_array_equal(arrays_of(outcome)[key], value)
    assert outcome.progress.selection == expected.progress.selection
    for key, value in expected.progress.histograms.items():
        np.testing.assert_array_equal(outcome.progress.histograms[key], value)
    assert outcome.progress.cost.bytes_up == expected.progress.cost.bytes_up
    assert outcome.progress.cost.bytes_down == expected.progress.cost.bytes_down
    lines = (cut.folder / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]


def models_sent(federation):
    """Run and deliver; return what a site was sent by kind and round, outcome and card."""
    site, sent = federation.sites["east"], {}
    genuine = site.answer

    def answer(kind, content):
        if ARRAYS in content.array_records:
            number = int(content[CONFIG].get(ROUND_KEY, 0))
            sent[kind, number] = [array.numpy() for array in content[ARRAYS].values()]
        return genuine(kind, content)

    site.answer = answer
    loop, context = federation.loop()
    outcome = loop.run()
    card = model_card(context, outcome)
    loop.deliver(outcome, card)
    write_results(context, outcome, card)
    return sent, outcome, card


def test_the_average_of_the_rounds_is_used_and_the_last_model_is_trained_on(tmp_path):
    plain, _, plain_card = models_sent(Federation(tmp_path / "plain"))
    federation = Federation(tmp_path / "averaged", "server.ema=0.6")
    averaged, outcome, card = models_sent(federation)
    models = [plain[kind] for kind in (("train", 2), ("train", 3), ("query.deliver", 0))]
    for number in (1, 2, 3):
        for found, expected in zip(averaged["train", number], plain["train", number], strict=True):
            np.testing.assert_array_equal(found, expected)
        weights = 0.6 ** np.arange(number - 1, -1, -1.0)
        for place, found in enumerate(averaged["evaluate", number]):
            values = np.stack([model[place].astype(float) for model in models[:number]])
            np.testing.assert_allclose(
                found, np.average(values, axis=0, weights=weights), rtol=1e-6
            )
            np.testing.assert_array_equal(
                plain["evaluate", number][place], models[number - 1][place]
            )
    saved = load_file(federation.folder / "model" / "model.safetensors")
    for place, (name, array) in enumerate(outcome.arrays.items()):
        for found in (
            averaged["query.deliver", 0][place],
            averaged["evaluate", 3][place],
            saved[name],
        ):
            np.testing.assert_array_equal(array.numpy(), found)
    summary = json.loads((federation.folder / "summary.json").read_text())
    assert (card["ema"], summary["ema"], plain_card["ema"]) == (0.6, 0.6, 0.0)


def test_runs_with_another_average_have_another_id(tmp_path):
    parts = [Federation(tmp_path, f"server.ema={ema}") for ema in (0.0, 0.9, 0.9)]
    first, second, third = (run_settings(part.config, part.task).run_id for part in parts)
    assert first != second == third


def test_the_summary_counts_every_exchange_and_comes_last(federation, monkeypatch):
    loop, context = federation.loop()
    outcome = loop.run()
    card = model_card(context, outcome)
    before = outcome.progress.cost.bytes_down
    rounds = outcome.progress.rounds
    assert before > sum(line["bytes_down"] for line in rounds)  # the selection
    assert outcome.progress.cost.seconds > sum(line["seconds"] for line in rounds) - 0.001
    loop.deliver(outcome, card)
    model = sum(array.numpy().nbytes for array in outcome.arrays.values())
    assert outcome.progress.cost.bytes_down > before + 3 * model

    genuine = os.replace

    def fail(source, target):
        if target == federation.folder / "report.html":
            raise OSError("disk full")
        genuine(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_results(context, outcome, card)
    assert not (federation.folder / "summary.json").exists()
    write_results(context, outcome, card)
    summary = json.loads((federation.folder / "summary.json").read_text())
    assert summary["bytes_down"] == outcome.progress.cost.bytes_down
    assert summary["bytes_up"] == outcome.progress.cost.bytes_up
    assert (federation.folder / "report.html").stat().st_size > 1000
    assert not (federation.folder / ".finish").exists()


def test_where_the_weights_came_from_is_said_once(federation, monkeypatch):
    said = []
    monkeypatch.setattr(RunProgress, "note", lambda _self, text: said.append(text))
    monkeypatch.setattr(Model, "origin", "3 of 4 weight tensors are from x.pth")
    for _ in range(2):  # the second time from the checkpoint
        federation.run()
    assert said == ["initial weights: 3 of 4 weight tensors are from x.pth"]
