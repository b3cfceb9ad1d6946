"""The fusion options of a run reach the training of each round."""

from node_asker import NodeAsker

from client.node import trainer
from medfusion.training.loop import FitResult
from medfusion.transport.requests import read_error

OPTIONS = (
    'model.modalities=["tabular", "text"]',
    "model.modality_dropout=0.4",
    "model.auxiliary_heads=0.5",
    "model.masked_labels=0.25",
    "privacy.enabled=false",
    "selection.method=none",
    "run.rounds=4",
)


def test_each_round_trains_as_the_options_say(cohort, tmp_path, monkeypatch):
    asker = NodeAsker(cohort, tmp_path, *OPTIONS)
    asked = []

    def fit(*_, **arguments):
        asked.append(arguments)
        return FitResult(steps=1, loss=0.5, seconds=0.0)

    monkeypatch.setattr(trainer, "fit", fit)
    for number in range(1, 5):
        assert read_error(asker.ask("train", round=number)) is None
    for arguments in asked:
        assert arguments["modality_dropout"] == 0.4
        assert arguments["auxiliary_heads"] == 0.5
        assert arguments["masked_labels"] == 0.25
