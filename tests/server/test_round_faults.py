"""What a run does when sites misbehave or leave."""

import time

import numpy as np
import pytest
from fake_federation import PATIENTS, Federation, arrays_of
from flwr.app import Array

from medfusion.errors import FederationError
from medfusion.transport.requests import (
    ARRAYS,
    METRICS,
    REPLY,
    WEIGHT_KEY,
    error_reply,
    reply_with,
)
from server.progress import RunProgress


def spoil(site, kind, change):
    """Let ``change`` edit what a site answers."""
    genuine = getattr(site, kind)

    def answer(content, number):
        reply = genuine(content, number)
        return change(reply, number) or reply

    setattr(site, kind, answer)


def moved(outcome):
    """How far every parameter went from the start (all go as far)."""
    (bias,) = (array for name, array in arrays_of(outcome).items() if name == "bias.weight")
    return bias


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
    assert time.monotonic() - begin < 15  # every wait is .3 s
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


def test_an_evaluation_that_was_cut_off_is_made_up_for_without_training_again(federation):
    sites = [federation.sites[name] for name in PATIENTS]
    for site in sites:
        site.evaluate = lambda content, number: error_reply(FederationError("the power went"))
    with pytest.raises(FederationError, match="the power went"):
        federation.run()
    for site in sites:
        del site.evaluate
    outcome = federation.run()
    assert [line["round"] for line in outcome.progress.rounds] == [1, 2, 3]
    assert all(line["metrics"] is not None for line in outcome.progress.rounds)
    # A site that was asked to train a round once more would lead to another model.
    assert all(federation.trained(name) == [1, 2, 3] for name in PATIENTS)
