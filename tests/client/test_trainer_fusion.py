"""The fusion options of a run reach the training of each round."""

import pytest

from client.node import trainer
from client.node.node import Node
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.training.loop import FitResult
from medfusion.transport.arrays import to_record
from medfusion.transport.requests import CONFIG, ROUND_KEY, Request, read_error, request_content
from server.rounds import run_settings

OPTIONS = (
    'model.modalities=["tabular", "text"]',
    "model.modality_dropout=0.4",
    "model.modality_dropout_schedule=decreasing",
    "model.auxiliary_heads=0.5",
    "model.blend.text=3",
    "model.masked_labels=0.25",
    "privacy.enabled=false",
    "selection.method=none",
    "run.rounds=4",
)


def test_each_round_trains_as_the_options_say(tmp_path, monkeypatch):
    write_cohort(tmp_path / "cohort", sites=1, patients=40, seed=1)
    config = load_config(tmp_path / "cohort" / "config.toml", OPTIONS)
    data = load_site_data(next((tmp_path / "cohort" / "sites").iterdir()))
    settings = run_settings(config, data.task)
    node = Node(data, NodeState(tmp_path / "state"), b"secret", simulated=True)
    record = to_record(trainable_state(build_model(settings.model, data.task, seed=0)))
    asked = []

    def fit(*_, **arguments):
        asked.append(arguments)
        return FitResult(steps=1, loss=0.5, seconds=0.0)

    monkeypatch.setattr(trainer, "fit", fit)
    for number in range(1, 5):
        content = request_content(Request(settings=settings), record)
        content[CONFIG][ROUND_KEY] = number
        assert read_error(node.handle("train", content)) is None
    rates = [arguments["modality_dropout"] for arguments in asked]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])
    for arguments in asked:
        assert arguments["auxiliary_weights"] == {"image": 0.5, "tabular": 0.5, "text": 1.5}
        assert arguments["masked_labels"] == 0.25
