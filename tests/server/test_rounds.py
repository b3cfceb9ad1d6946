"""What a run against sites in memory computes, and what it leaves."""

import json
import os

import numpy as np
import pytest
from fake_federation import PATIENTS, STEPS, Federation, arrays_of
from safetensors.numpy import load_file

from medfusion.errors import FederationError
from medfusion.models.contract import Model
from medfusion.models.initial_weights import InitialWeights
from medfusion.transport.requests import ARRAYS, CALIBRATION_KEY, CONFIG, ROUND_KEY
from server.federated_calibration import federated_calibration
from server.progress import RunProgress
from server.results import model_card, write_results
from server.run_state import run_settings


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


def test_sites_get_no_calibration_figures_of_one_another(federation):
    loop, context = federation.loop()
    outcome = loop.run()
    found = federated_calibration(
        context, calibration=outcome.progress.calibration, test=outcome.progress.histograms
    )
    loop.deliver(outcome, model_card(context, outcome), found)
    assert set(found.test["sites"]) == set(PATIENTS)  # the coordinator's report shows them
    for site in federation.sites.values():
        kind, _, request = site.asked[-1]
        assert kind == "query.deliver"
        sent = request["card"][CALIBRATION_KEY]
        assert "sites" not in sent["test"]
        assert sent["test"]["coverage"] == found.test["coverage"]
        assert sent["labels"] == found.model_dump(mode="json")["labels"]


def test_it_is_recorded_whose_histograms_came(federation):
    federation.grid.before = lambda kind, number: (
        federation.grid.silent.add(7) if (kind, number) == ("evaluate", 2) else None
    )
    progress = federation.run().progress
    assert progress.selected == sorted(PATIENTS)
    assert [line["evaluated"] for line in progress.rounds] == [
        sorted(PATIENTS),
        ["east", "north"],
        ["east", "north"],
    ]


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


def test_the_results_are_on_the_disk_before_the_summary_says_so(federation, monkeypatch):
    loop, context = federation.loop()
    outcome = loop.run()
    synced, genuine = [], os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        genuine(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_results(context, outcome, model_card(context, outcome))
    names = ["model/model.safetensors", "model/model.json", "histograms.json", "report.html"]
    before = synced[: synced.index((federation.folder / "summary.json").stat().st_ino)]
    assert {(federation.folder / name).stat().st_ino for name in names} <= set(before)
    assert synced[-1] == federation.folder.stat().st_ino


def test_where_the_weights_came_from_is_said_once(federation, monkeypatch):
    said = []
    monkeypatch.setattr(RunProgress, "note", lambda _self, text: said.append(text))
    monkeypatch.setattr(Model, "origin", "3 of 4 weight tensors are from x.pth")
    for _ in range(2):  # the second time from the checkpoint
        federation.run()
    assert said == ["initial weights: 3 of 4 weight tensors are from x.pth"]


def test_the_card_records_what_the_run_began_from(federation, monkeypatch):
    loop, context = federation.loop()
    assert model_card(context, loop.run())["initial_weights"] is None
    first = InitialWeights(kind="tensors", sha256="a" * 64)
    monkeypatch.setattr(Model, "initial_weights", first)
    for _ in range(2):  # the second time from the checkpoint
        loop, context = federation.loop()
        card = model_card(context, loop.run())
        assert json.loads(json.dumps(card))["initial_weights"] == {
            "kind": "tensors",
            "sha256": "a" * 64,
            "epsilon": None,
            "delta": None,
            "simulated": False,
            "initial_weights": None,
        }
