"""Text through MedFusionNet: states computed in advance or in the model, of tokens or notes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from waking import woken

from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.tensors import StudyTensors
from medfusion.models.blocks.text_encoder import TextEncoder
from medfusion.models.options import LogisticOptions, MedFusionNetOptions, TextOptions
from medfusion.models.registry import build_model, build_tokenizer, frozen_note_encoder
from medfusion.prediction import predict_logits

N = 7
TASK = Task.parse(
    {
        "task": {"name": "t", "kind": "multilabel"},
        "text": {"max_tokens": 12},
        "features": {"age": {"kind": "numeric", "low": 0, "high": 100}},
        "labels": {"names": ["ill", "dead"]},
    },
    where="test",
)
NOTES = (
    "fever and cough",
    None,
    "no fever",
    "fever and cough",
    "chest pain " * 9,
    "x",
    "dry cough",
)
STUDIES = Studies(
    study_ids=np.array([f"s{i}" for i in range(N)]),
    patient_ids=np.array([f"p{i}" for i in range(N)]),
    rows=np.arange(2, N + 2),
    features=np.linspace(0, 100, N)[:, None],
    labels=np.zeros((N, 2), np.float32),
    images=(None,) * N,
    notes=NOTES,
)
CPU = torch.device("cpu")


def options(**text) -> MedFusionNetOptions:
    return MedFusionNetOptions(text=TextOptions(**text))


def tensors_for(model, chosen, *, ahead: bool, cache: Path = Path("unused")) -> StudyTensors:
    return StudyTensors.build(
        STUDIES,
        TASK,
        selection=None,
        modalities=model.modalities,
        tokenizer=build_tokenizer(chosen, TASK),
        note_encoder=frozen_note_encoder(model) if ahead else None,
        note_cache=cache,
    )


@pytest.mark.parametrize(("pooling", "shape"), [("tokens", (N, 12, 64)), ("mean", (N, 1, 64))])
def test_states_computed_ahead_give_the_same_predictions(pooling, shape, monkeypatch):
    chosen = options(pooling=pooling)
    model = woken(build_model(chosen, TASK, seed=0))
    live = predict_logits(model, tensors_for(model, chosen, ahead=False), CPU)
    ahead = tensors_for(model, chosen, ahead=True)
    assert ahead.inputs(torch.arange(N))["text_states"].shape == shape
    monkeypatch.setattr(TextEncoder, "forward", None)  # from here on, nothing encodes
    found = predict_logits(model, ahead, CPU, batch=3)
    # float16 rounds states by 2^-11; logits differ by tenths between notes
    np.testing.assert_allclose(found, live, atol=1e-6 if pooling == "mean" else 1e-3)
    assert np.ptp(live, axis=0).min() > 0.05


def test_what_is_hidden_later_stays_hidden():
    chosen = options()
    model = woken(build_model(chosen, TASK, seed=0)).eval()
    inputs = tensors_for(model, chosen, ahead=True).inputs(torch.arange(N))
    hidden = {**inputs, "tokens": inputs["tokens"].clone()}
    hidden["tokens"][0, 1] = 0
    other = {**hidden, "text_states": hidden["text_states"].clone()}
    other["text_states"][0, 1] = 5.0
    before, after, again = model(inputs), model(hidden), model(other)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1:], after[1:])
    assert torch.equal(after, again)


@pytest.mark.parametrize("pooling", ["tokens", "mean"])
def test_a_hidden_note_is_a_missing_one(pooling):
    chosen = options(pooling=pooling)
    model = woken(build_model(chosen, TASK, seed=0)).eval()
    inputs = tensors_for(model, chosen, ahead=True).inputs(torch.arange(N))
    hidden = {**inputs, "tokens": torch.zeros_like(inputs["tokens"])}
    missing = {**hidden, "text_states": torch.zeros_like(inputs["text_states"])}
    torch.testing.assert_close(model(hidden), model(missing))
    assert not torch.allclose(model(hidden)[0], model(inputs)[0])


def test_the_mean_is_that_of_the_real_tokens_at_unit_size():
    tokens = torch.tensor([[3, 300, 400, 4, 0, 0], [3, 500, 4, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    encoder = TextEncoder(TextOptions(pooling="mean"), 6)
    found = encoder(tokens)
    assert found.shape == (3, 1, 64)
    raw = TextEncoder(TextOptions(), 6).encoder
    for row, length in ((0, 4), (1, 3)):
        mean = raw(input_ids=tokens[row : row + 1, :length] - 1).last_hidden_state[0].mean(dim=0)
        expected = mean / mean.pow(2).mean().sqrt()
        torch.testing.assert_close(found[row, 0], expected, atol=1e-4, rtol=1e-4)
    assert not found[2].any()


def test_states_are_brought_to_unit_size():
    encoder = TextEncoder(TextOptions(), 6)
    tokens = torch.tensor([[3, 300, 400, 4, 0, 0]])
    plain = encoder(tokens)
    with torch.no_grad():
        for value in encoder.encoder.encoder.layer[-1].output.LayerNorm.parameters():
            value.mul_(0.03)
    torch.testing.assert_close(encoder(tokens), plain, atol=1e-2, rtol=0)
    sizes = plain.pow(2).mean(dim=-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes))


def test_pooling_changes_the_model():
    logits = {}
    for pooling in ("tokens", "mean"):
        chosen = options(pooling=pooling)
        model = woken(build_model(chosen, TASK, seed=0))
        logits[pooling] = predict_logits(model, tensors_for(model, chosen, ahead=False), CPU)
    assert not np.allclose(logits["tokens"], logits["mean"])
    np.testing.assert_allclose(logits["tokens"][1], logits["mean"][1], atol=1e-6)  # no note


def test_only_what_nothing_trains_is_computed_ahead():
    assert frozen_note_encoder(build_model(options(), TASK, seed=0)) is not None
    assert frozen_note_encoder(build_model(options(freeze=False), TASK, seed=0)) is None
    assert frozen_note_encoder(build_model(LogisticOptions(), TASK, seed=0)) is None
    tabular = MedFusionNetOptions(modalities=("tabular",))
    assert frozen_note_encoder(build_model(tabular, TASK, seed=0)) is None
