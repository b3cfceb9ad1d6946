"""A deployed run without privacy: what it may ask of a site, and how often."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from node_asker import NodeAsker
from tabular_cohort import write_ward

from client.node.policy import groups_of_enough_patients, of_enough_patients
from medfusion.models.contract import trainable_state
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import ARRAYS, read_error, read_histograms

RUN = ("privacy.enabled=false", "training.steps=1", "run.rounds=3", "evaluation.every=2")


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("ward"), sites=("north",)).parent


@pytest.fixture
def asker(ward, tmp_path):
    return deployed(ward, tmp_path / "state")


def deployed(ward, state):
    return NodeAsker(ward, state, *RUN, simulated=False, change=without_privacy)


def without_privacy(data):
    policy = data.config.policy.model_copy(update={"allow_without_privacy": True})
    return replace(data, config=data.config.model_copy(update={"policy": policy}))


def other_model(asker, seed=1):
    draws = torch.Generator().manual_seed(seed)
    state = {
        name: value.detach() + torch.randn(value.shape, generator=draws)
        for name, value in trainable_state(asker.model).items()
    }
    return to_record(state)


def again(asker, ward):
    """The same site after a restart of its Node."""
    return deployed(ward, asker.state.folder)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_second_model_in_a_round_is_refused(ward, asker, kind, restarted):
    assert read_error(asker.ask(kind)) is None
    if restarted:
        asker = again(asker, ward)
    told = str(read_error(asker.ask(kind, arrays=other_model(asker))))
    assert f"{kind}, round 1: this site has answered another request for it" in told


def test_a_lost_reply_is_given_again(ward, asker):
    first = from_record(asker.ask("train")[ARRAYS])
    histograms = read_histograms(asker.ask("select"))
    second = again(asker, ward)
    answered = from_record(second.ask("train")[ARRAYS])
    assert all(torch.equal(first[name], answered[name]) for name in first)
    assert (read_histograms(second.ask("select")) == histograms).all()


def test_a_run_has_as_many_evaluations_as_were_shown(asker):
    assert asker.settings.evaluations == 2
    told = [str(read_error(asker.ask("evaluate", round=number))) for number in (1, 2, 3)]
    assert told[:2] == ["None", "None"]
    assert "evaluate: the run was approved for 2, and all were answered" in told[2]


def test_it_is_written_down_before_anything_is_computed(asker, monkeypatch):
    def killed(*arguments):
        raise SystemExit

    monkeypatch.setattr("client.node.trainer.Trainer._fit", killed)
    with pytest.raises(SystemExit):
        asker.ask("train")
    monkeypatch.undo()
    assert "another request" in str(read_error(asker.ask("train", arrays=other_model(asker))))
    assert read_error(asker.ask("train")) is None


def test_a_damaged_file_is_no_fresh_start(ward, asker):
    asker.ask("train")
    path = asker.state.releases_file(asker.settings.run_id)
    path.write_text(json.dumps({"schema": 1, "releases": [{"kind": "train"}]}))
    told = str(read_error(again(asker, ward).ask("train")))
    assert f"releases/{path.name}" in told
    assert "restore it from a backup" in told


def test_a_researcher_asks_as_often_as_he_likes(ward, tmp_path):
    asker = NodeAsker(ward, tmp_path / "state", *RUN)
    for seed in range(3):
        assert read_error(asker.ask("train", arrays=other_model(asker, seed))) is None


def test_a_label_known_of_few_patients_is_left_out_of_exact_figures():
    known = np.array([[1, 1], [1, 0], [1, 0]], dtype=np.float32)
    assert of_enough_patients(known, 2).tolist() == [[1, 0], [1, 0], [1, 0]]
    assert of_enough_patients(known, 1).tolist() == known.tolist()


@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_no_few_patients_are_left_between_the_whole_and_its_groups(groups, least, seed):
    group = np.array(groups)  # -1: the feature is missing
    members = group == np.arange(4)[:, None]
    known = np.random.default_rng(seed).integers(0, 2, (len(group), 2)).astype(np.float32)
    shown = groups_of_enough_patients(known, members, least).sum(axis=1)  # [G, L]
    own = members.astype(int) @ known
    whole = of_enough_patients(known, least).sum(axis=0)
    assert ((shown == 0) | (shown == own)).all()
    assert ((shown == 0) | (shown >= least)).all()
    rest = whole - shown.sum(axis=0)
    assert ((rest == 0) | (rest >= least) | (shown.sum(axis=0) == 0)).all()
    assert (rest >= 0).all()


def test_groups_that_hold_everybody_are_shown_whole():
    known = np.ones((6, 1), dtype=np.float32)
    members = np.repeat(np.eye(2, dtype=bool), 3, axis=1)
    assert groups_of_enough_patients(known, members, 3).sum() == 6
    missing = members & (np.arange(6) > 0)  # two are left of the first, and one is in neither
    assert groups_of_enough_patients(known, missing, 2).sum(axis=(1, 2)).tolist() == [0, 3]
