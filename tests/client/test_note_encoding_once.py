"""A Node runs a frozen text encoder once over its notes, not in every step."""

import pytest

from client.node.node import Node
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST, TRAIN
from medfusion.data.thresholds import first_study_per_patient
from medfusion.models.blocks.text_encoder import TextEncoder
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.transport.arrays import to_record
from medfusion.transport.requests import CONFIG, ROUND_KEY, Request, read_error, request_content
from server.rounds import run_settings


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "cohort"
    write_cohort(folder, sites=1, patients=60, seed=1)
    return folder


def count_encoded_notes(cohort, state, monkeypatch, *overrides) -> tuple[list[int], object]:
    """Notes that went through the encoder after each of three requests, and the site's data."""
    overrides = ("privacy.enabled=false", "run.rounds=2", "selection.method=none", *overrides)
    chosen = ('model.modalities=["tabular","text"]', "training.steps=3", *overrides)
    config = load_config(cohort / "config.toml", chosen)
    data = load_site_data(next((cohort / "sites").iterdir()))
    settings = run_settings(config, data.task)
    record = to_record(trainable_state(build_model(settings.model, data.task, seed=0)))
    node = Node(data, NodeState(state), b"secret", simulated=True)
    seen, plain = [], TextEncoder.forward
    monkeypatch.setattr(
        TextEncoder,
        "forward",
        lambda self, tokens: (seen.append(len(tokens)), plain(self, tokens))[1],
    )
    totals = []
    for kind, number in (("train", 1), ("train", 2), ("evaluate", 2)):
        content = request_content(Request(settings=settings), record)
        content[CONFIG][ROUND_KEY] = number
        assert read_error(node.handle(kind, content)) is None
        totals.append(sum(seen))
    return totals, data


def test_frozen_notes_are_encoded_once(cohort, tmp_path, monkeypatch):
    totals, data = count_encoded_notes(cohort, tmp_path, monkeypatch)
    train, test = data.part(TRAIN), data.part(TEST)
    test = test.take(first_study_per_patient(test.patient_ids))
    notes = [len(set(part.notes) - {None}) for part in (train, test)]
    assert totals == [sum(notes)] * 3


def test_an_encoder_that_is_trained_reads_every_batch(cohort, tmp_path, monkeypatch):
    totals, _ = count_encoded_notes(cohort, tmp_path, monkeypatch, "model.text.freeze=false")
    assert totals[0] < totals[1] < totals[2]
