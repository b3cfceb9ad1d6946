"""Gates, the modalities' own heads and label states: what each may see and what it changes."""

import itertools

import pytest
import torch
from torch import Tensor
from waking import woken

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.blocks.gating import ModalityGate
from medfusion.models.contract import Model, trainable_state
from medfusion.models.options import LogisticOptions, MedFusionNetOptions
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


def lacking(inputs: dict[str, Tensor], modality: str, study: int) -> dict[str, Tensor]:
    inputs = {name: value.clone() for name, value in inputs.items()}
    if modality == "image":
        inputs["image_present"][study] = False
    elif modality == "text":
        inputs["tokens"][study] = 0
    else:
        inputs["tabular"][study, :, 1] = 1.0
    return inputs


@pytest.mark.parametrize(
    "option",
    [
        {"gating": "modality"},
        {"gating": "token"},
        {"auxiliary_heads": 0.3},
        {"late_fusion": True},
        {"masked_labels": 0.5},
        {"head": "pooled", "gating": "modality"},
        {"head": "pooled", "late_fusion": True},
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
@pytest.mark.parametrize("gating", ["modality", "token"])
def test_closed_gates_silence_a_modality_and_open_ones_change_nothing(head, gating):
    plain = woken(build_model(MedFusionNetOptions(head=head), TASK, seed=3))
    gated = woken(build_model(MedFusionNetOptions(head=head, gating=gating), TASK, seed=3))
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


def test_modality_gates_are_sigmoids_of_query_and_all_evidence():
    """Against a loop over studies, labels and modalities."""
    draw = torch.Generator().manual_seed(0)
    gate = ModalityGate(4, queries=1, modalities=2)
    with torch.no_grad():
        gate.gate.weight.normal_(generator=draw)
    query, *evidence = torch.randn(3, B, L, 4, generator=draw)
    found = gate(evidence, query)
    for study, label, m in itertools.product(range(B), range(L), range(2)):
        seen = torch.cat([x[study, label] for x in (query, *evidence)])
        opened = torch.sigmoid(gate.gate.weight[m] @ seen + gate.gate.bias[m])
        torch.testing.assert_close(found[m][study, label], opened * evidence[m][study, label])


def test_gates_start_nearly_open_whatever_the_inputs():
    evidence = list(torch.randn(2, B, L, 4))
    for gated, each in zip(
        ModalityGate(4, queries=0, modalities=2)(evidence), evidence, strict=True
    ):
        torch.testing.assert_close(gated, 0.8808 * each, rtol=1e-4, atol=1e-6)


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
@pytest.mark.parametrize("gating", ["modality", "token"])
@pytest.mark.parametrize("own", MODALITIES)
def test_an_own_head_sees_its_modality_alone(head, gating, own):
    model = build(head=head, gating=gating, auxiliary_heads=0.5)
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
    model = build(head=head, gating="modality", auxiliary_heads=0.5, late_fusion=True)
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


@HEADS
def test_late_fusion_is_the_mean_over_what_a_study_has(head):
    apart, late = (
        build_model(
            MedFusionNetOptions(head=head, auxiliary_heads=0.5, late_fusion=on), TASK, seed=3
        )
        for on in (False, True)
    )
    inputs = lacking(lacking(make_inputs(), "image", 1), "text", 1)
    inputs = lacking(lacking(inputs, "tabular", 2), "tabular", 1)
    parts = apart.outputs(inputs)
    found = late.outputs(inputs)
    assert torch.equal(found["fused"], late(inputs))
    has = dict.fromkeys(range(B), ("fused", *MODALITIES))
    has |= {1: ("fused",), 2: ("fused", "image", "text")}
    for study, names in has.items():
        expected = sum(parts[name][study] for name in names) / len(names)
        torch.testing.assert_close(found["fused"][study], expected)


def test_one_modality_has_no_head_beside_the_fused_one():
    model = build(modalities=("tabular",), auxiliary_heads=0.5, late_fusion=True)
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


def test_blending_needs_heads_to_blend():
    with pytest.raises(ConfigError, match="set auxiliary_heads > 0"):
        MedFusionNetOptions.parse({"blend": {"text": 2.0}}, where="test")
    with pytest.raises(ConfigError, match=r"blend.text.*greater than 0"):
        MedFusionNetOptions.parse({"auxiliary_heads": 1, "blend": {"text": 0}}, where="test")


def test_the_weights_of_the_own_heads():
    options = MedFusionNetOptions(auxiliary_heads=0.5, blend={"text": 3.0, "tabular": 0.2})
    assert options.auxiliary_weights == {"image": 0.5, "tabular": 0.1, "text": 1.5}
    assert MedFusionNetOptions().auxiliary_weights == {}
    assert LogisticOptions().auxiliary_weights == {}


def test_modality_dropout_may_fall_from_round_to_round():
    constant = MedFusionNetOptions(modality_dropout=0.4)
    falling = MedFusionNetOptions(modality_dropout=0.4, modality_dropout_schedule="decreasing")
    rounds = [number / 4 for number in range(4)]
    assert [constant.modality_dropout_at(progress) for progress in rounds] == [0.4] * 4
    assert [falling.modality_dropout_at(progress) for progress in rounds] == pytest.approx(
        [0.4, 0.3, 0.2, 0.1]
    )
    assert LogisticOptions().modality_dropout_at(0.5) == 0.0
