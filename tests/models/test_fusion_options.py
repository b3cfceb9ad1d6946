"""Gates, the modalities' own heads and label states: what each may see and what it changes."""

import itertools

import pytest
import torch
from torch import Tensor
from waking import woken

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.contract import Model, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model

B, K, L, T = 5, 4, 3, 8
MODALITIES = ("image", "tabular", "text")
TASK = Task.parse(
    {
        "task": {"name": "fusion", "kind": "multilabel"},
        "image": {"size": [16, 16]},
        "text": {"max_tokens": T},
        "features": {f"f{n}": {"kind": "numeric", "low": 0, "high": 1} for n in range(K)},
        "labels": {"names": [f"label{n}" for n in range(L)]},
    },
    where="test",
)
HEADS = pytest.mark.parametrize("head", ["queries", "pooled"])


def make_inputs(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tabular = torch.randn(B, K, 3 + L, generator=draw)
    tabular[..., 1], tabular[..., 2] = 0.0, 1.0
    return {
        "image": torch.randn(B, 1, 16, 16, generator=draw),
        "image_present": torch.ones(B, dtype=torch.bool),
        "tabular": tabular,
        "tokens": torch.randint(1, 900, (B, T), generator=draw),
    }


KEYS = {"image": "image", "tabular": "tabular", "text": "tokens"}


def build(**options) -> Model:
    """A model with every parameter away from zero."""
    model = woken(build_model(MedFusionNetOptions(**options), TASK, seed=1))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
    return model


@pytest.mark.parametrize(
    "option",
    [
        {"gating": "token"},
        {"auxiliary_heads": 0.3},
        {"masked_labels": 0.5},
        {"head": "pooled", "gating": "token"},
    ],
    ids=str,
)
def test_an_option_adds_parameters_and_leaves_the_initial_values_of_the_others(option):
    base = {"head": option.get("head", "queries")}
    plain, added = (
        trainable_state(build_model(MedFusionNetOptions(**choice), TASK, seed=3))
        for choice in (base, option)
    )
    assert added.keys() > plain.keys()
    for name, value in plain.items():
        assert torch.equal(added[name], value), name


@pytest.mark.parametrize("label_states", [False, True])
def test_own_heads_and_label_states_leave_the_initial_logits_as_they_are(label_states):
    option = {"masked_labels": 0.5} if label_states else {"auxiliary_heads": 0.3}
    inputs = make_inputs() | {"label_states": torch.ones(B, L, dtype=torch.int64)}
    plain, added = (
        build_model(MedFusionNetOptions(**choice), TASK, seed=3)(inputs) for choice in ({}, option)
    )
    assert torch.equal(plain, added)


@HEADS
def test_closed_gates_silence_a_modality_and_open_ones_change_nothing(head):
    plain = woken(build_model(MedFusionNetOptions(head=head), TASK, seed=3))
    gated = woken(build_model(MedFusionNetOptions(head=head, gating="token"), TASK, seed=3))
    inputs, other = make_inputs(), make_inputs(9)
    assert not torch.allclose(gated(inputs), plain(inputs), atol=1e-4)  # nearly open is not open
    biases = [v for n, v in trainable_state(gated).items() if "gate" in n and n.endswith("bias")]
    with torch.no_grad():
        for bias in biases:
            bias.fill_(40.0)
    torch.testing.assert_close(gated(inputs), plain(inputs), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for bias in biases:
            bias.fill_(-100.0)
    torch.testing.assert_close(gated(inputs), gated(other), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain(inputs), plain(other), atol=1e-3)


def test_a_token_gate_closes_on_one_token_alone():
    model = build(gating="token", modalities=("tabular",))
    gate = model.token_gates["tabular"].gate
    inputs = make_inputs()
    tokens = model.tabular(inputs["tabular"]).tokens[0]
    with torch.no_grad():  # closed for the third column of the first study, open for the others
        gate.weight.copy_(-200.0 * tokens[3:4] / tokens[3].square().sum())
        gate.bias.fill_(100.0 + 0.2)
        opened = model.token_gates["tabular"](model.tabular(inputs["tabular"])).gate[0, :, 0]
    lowest = opened.argmin()
    assert lowest == 3
    assert opened[3] < 0.6
    assert (opened[[0, 1, 2, 4]] > 0.9).all()


@HEADS
@pytest.mark.parametrize("own", MODALITIES)
def test_an_own_head_sees_its_modality_alone(head, own):
    model = build(head=head, gating="token", auxiliary_heads=0.5)
    before = model.outputs(make_inputs())
    for other in MODALITIES:
        key = KEYS[other]
        after = model.outputs(make_inputs() | {key: make_inputs(4)[key]})
        if other == own:
            assert not torch.allclose(after[own], before[own], atol=1e-3)
        else:
            assert torch.equal(after[own], before[own])
        assert not torch.allclose(after["fused"], before["fused"], atol=1e-4)


@HEADS
def test_an_own_loss_trains_no_part_of_another_modality(head):
    model = build(head=head, auxiliary_heads=0.5)
    model.outputs(make_inputs())["text"].square().sum().backward()
    felt = {
        name
        for name, value in trainable_state(model).items()
        if value.grad is not None and value.grad.any()
    }
    assert {name.split(".")[0] for name in felt} <= {"text", "head", "unimodal"}
    assert any(name.startswith("text.project") for name in felt)
    gathers = {name for name in felt if "gather" in name or "unimodal" in name}
    assert all("gather.text." in name or "unimodal.text." in name for name in gathers)


def test_one_modality_has_no_head_beside_the_fused_one():
    model = build(modalities=("tabular",), auxiliary_heads=0.5)
    assert list(model.outputs(make_inputs())) == ["fused"]
    assert not [name for name in trainable_state(model) if "unimodal" in name]


def test_no_label_told_is_the_same_as_no_label_states():
    model = build(masked_labels=0.5)
    inputs = make_inputs()
    unknown = torch.zeros(B, L, dtype=torch.int64)
    assert torch.equal(model(inputs), model(inputs | {"label_states": unknown}))


def test_a_told_label_tells_of_the_others_and_absent_differs_from_present():
    model = build(masked_labels=0.5, auxiliary_heads=0.5)
    inputs = make_inputs()
    found = []
    for state in range(3):
        states = torch.zeros(B, L, dtype=torch.int64)
        states[2, 0] = state
        found.append(model.outputs(inputs | {"label_states": states}))
    rest = [0, 1, 3, 4]
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one["fused"][2, 1:], other["fused"][2, 1:], atol=1e-4)
        torch.testing.assert_close(one["fused"][rest], other["fused"][rest])
        for name in MODALITIES:  # labels do not meet there
            torch.testing.assert_close(one[name][:, 1:], other[name][:, 1:])


@pytest.mark.parametrize("option", [{"head": "pooled"}, {"label_attention": False}], ids=str)
def test_labels_are_told_only_where_labels_attend_to_one_another(option):
    with pytest.raises(ConfigError, match=r"masked_labels = 0.2 needs head = 'queries' and label_"):
        MedFusionNetOptions.parse({"masked_labels": 0.2, **option}, where="test")
