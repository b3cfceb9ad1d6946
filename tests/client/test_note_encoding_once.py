"""A Node runs a frozen text encoder once over its notes, not in every step."""

from node_asker import NodeAsker

from medfusion.data.split import CALIBRATION, TEST, TRAIN
from medfusion.data.thresholds import first_study_per_patient
from medfusion.models.blocks.text_encoder import TextEncoder
from medfusion.transport.requests import read_error


class Asker(NodeAsker):
    usual = (
        "privacy.enabled=false",
        "run.rounds=2",
        "selection.method=none",
        'model.modalities=["tabular","text"]',
        "training.steps=3",
    )


def count_encoded_notes(asker, monkeypatch) -> list[int]:
    """Notes that went through the encoder after each of three requests."""
    seen, plain = [], TextEncoder.forward
    monkeypatch.setattr(
        TextEncoder,
        "forward",
        lambda self, tokens: (seen.append(len(tokens)), plain(self, tokens))[1],
    )
    totals = []
    for kind, number in (("train", 1), ("train", 2), ("evaluate", 2)):
        assert read_error(asker.ask(kind, round=number)) is None
        totals.append(sum(seen))
    return totals


def test_frozen_notes_are_encoded_once(cohort, tmp_path, monkeypatch):
    asker = Asker(cohort, tmp_path)
    totals = count_encoded_notes(asker, monkeypatch)
    parts = [asker.data.part(part) for part in (TRAIN, TEST, CALIBRATION)]
    held_out = [part.take(first_study_per_patient(part.patient_ids)) for part in parts[1:]]
    notes = [len(set(part.notes) - {None}) for part in (parts[0], *held_out)]
    assert totals == [notes[0], notes[0], sum(notes)]


def test_an_encoder_that_is_trained_reads_every_batch(cohort, tmp_path, monkeypatch):
    asker = Asker(cohort, tmp_path, "model.text.freeze=false")
    totals = count_encoded_notes(asker, monkeypatch)
    assert totals[0] < totals[1] < totals[2]
