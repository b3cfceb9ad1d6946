"""The studies on which a model is looked at: public, in the shape of a site's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from device_checks import CPU, RandomStudies, make_model, make_plan
from torch import Tensor, nn

from medfusion.data.encode import MISSING, SELECTED
from medfusion.errors import FederationError
from medfusion.models.contract import Model, trainable_state
from medfusion.models.fusion import presence
from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.keystream import Keystream
from medfusion.randomness import stream
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions
from medfusion.training.public_studies import PublicStudies

ALL = ("image", "tabular", "text")


def make(like: Any, rows: int = 3) -> PublicStudies:
    return PublicStudies(like, rows=rows, generator=stream(0, "test"))


def test_they_have_the_sites_shapes_and_types_and_none_of_its_values() -> None:
    site, other = RandomStudies(), RandomStudies(size=5)
    for values in (other.labels, other.known, *other._inputs.values()):
        values.zero_()
    found, same = make(site), make(other)
    everybody = torch.arange(3)
    inputs = found.inputs(everybody, CPU)
    expected = site.inputs(torch.zeros(3, dtype=torch.int64), CPU)
    assert {n: (x.shape, x.dtype) for n, x in inputs.items()} == {
        n: (x.shape, x.dtype) for n, x in expected.items()
    }
    for name, values in same.inputs(everybody, CPU).items():
        assert torch.equal(values, inputs[name])
    assert torch.equal(found.labels, same.labels)
    assert torch.equal(found.known, same.known)
    assert not (found.labels > found.known).any()


def test_nobodys_study_is_read() -> None:
    class Silent(RandomStudies):
        def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
            assert len(index) == 0
            return super().inputs(index, device)

    make(Silent())


@pytest.mark.parametrize("rows", [1, 3])
def test_all_is_there_but_in_the_last_of_several(rows: int) -> None:
    inputs = make(RandomStudies(), rows).inputs(torch.arange(rows), CPU)
    here = torch.stack(list(presence(inputs).values()))
    assert here[:, : max(rows - 1, 1)].all()
    assert rows == 1 or not here[:, -1].any()
    assert inputs["tabular"][0, :, SELECTED].all()
    assert not inputs["tabular"][..., MISSING].any()


def train(model: nn.Module, studies: Any = None, **changes: Any) -> None:
    """A round in which nobody is drawn."""
    arguments: dict[str, Any] = {
        "options": TrainingOptions(batch_size=12),
        "plan": replace(make_plan(1), sample_rate=1e-12),
        "physical_batch": 12,
        "precision": "float32",
        "private": Keystream(bytes(32), 0),
        "steps": 1,
    }
    fit(
        model,
        studies or RandomStudies(),
        objective=Multilabel(),
        public=torch.Generator().manual_seed(0),
        device=CPU,
        **(arguments | changes),
    )


CASES: dict[str, dict[str, Any]] = {
    "all": {"modalities": ALL},
    "image": {"modalities": ("image",)},
    "tabular": {"modalities": ("tabular",)},
    "text": {"modalities": ("text",)},
    "own_heads": {"modalities": ALL, "gating": "token", "auxiliary_heads": 0.5},
    "told_labels": {"modalities": ("tabular", "text"), "masked_labels": 0.5},
}


def every_gradient(model: Model, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> set[str]:
    """Train, and return the parameters that had a gradient to look at."""
    from medfusion.privacy import dp_sgd

    found: set[str] = set()
    check = dp_sgd.check_gradients

    def spy(parameters: Any, engine: Any, losses: Any) -> None:
        _, by_batch = engine.compared(losses)
        found.update(name for name, value in by_batch.items() if value.any())
        check(parameters, engine, losses)

    monkeypatch.setattr(dp_sgd, "check_gradients", spy)
    train(model, **changes)
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_sound_models_pass_and_all_their_parameters_are_looked_at(
    options: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**options)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in trainable_state(model).values():  # projections start at zero
            value.add_(0.02 * torch.randn(value.shape, generator=draw))
    names = ("auxiliary_heads", "masked_labels")
    extra = {name: options[name] for name in names if name in options}
    found = every_gradient(model, monkeypatch, precision=precision, **extra)
    assert found == trainable_state(model).keys()


class Leaky(nn.Module):
    """Reads a weight outside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model(modalities=("tabular",))
        self.fed: list[Tensor] = []

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        self.fed.append(inputs["tabular"])
        logits: Tensor = self.model(inputs)
        return logits + 5 * self.model.get_parameter("head.bias.weight").square().sum()


def test_a_refusal_comes_before_any_private_pass() -> None:
    model, site = Leaky(), RandomStudies()
    with torch.no_grad():
        model.model.get_parameter("head.bias.weight").add_(1.0)
    private = Keystream(bytes(32), 0)
    with pytest.raises(FederationError, match=r"head\.bias\.weight.*do not add up"):
        train(model, site, plan=make_plan(1), private=private)
    (fed,) = model.fed
    assert len(fed) == 2
    for row in fed:
        assert not (row == site._inputs["tabular"]).all(dim=(1, 2)).any()
    model.fed.clear()
    train(model, site, plan=None)  # whoever needs no sample's gradient may
    assert [len(fed) for fed in model.fed] == [12]


def test_the_look_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same weights and draws with it and without, in a model whose passes draw nothing."""

    def trained(model: Model) -> Tensor:
        train(model, plan=make_plan(2), steps=2, private=Keystream(bytes(32), 5))
        return torch.cat([value.detach().flatten() for value in model.parameters()])

    before = torch.get_rng_state()
    found = trained(make_model(modalities=("tabular",)))
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr("medfusion.privacy.dp_sgd.check_gradients", lambda *_: None)
    assert torch.equal(trained(make_model(modalities=("tabular",))), found)
