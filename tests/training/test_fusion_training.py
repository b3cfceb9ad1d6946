"""How the losses of the modalities' own heads and told labels enter training."""

from typing import Any

import pytest
import torch
from plans import training_plan
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from waking import woken

from medfusion.data.task import Task
from medfusion.models.contract import Model, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.training.local_run import LocalRun, make_autocast
from medfusion.training.loop import fit
from medfusion.training.optimizer import make_optimizer
from medfusion.training.options import TrainingOptions

N, K, L, T = 40, 3, 4, 6
CLIP, BATCH = 0.5, 8.0
TASK = Task.parse(
    {
        "task": {"name": "training", "kind": "multilabel"},
        "text": {"max_tokens": T},
        "features": {f"f{n}": {"kind": "numeric", "low": 0, "high": 1} for n in range(K)},
        "labels": {"names": [f"label{n}" for n in range(L)]},
    },
    where="test",
)
SGD = TrainingOptions(batch_size=8, optimizer="sgd", learning_rate=0.1)


class Studies:
    """Every fifth study lacks its note, every seventh its features."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.tabular = torch.randn(N, K, 3 + L, generator=draw)
        self.tabular[..., 1], self.tabular[..., 2] = 0.0, 1.0
        self.tabular[::7, :, 1] = 1.0
        self.tokens = torch.randint(1, 900, (N, T), generator=draw)
        self.tokens[::5] = 0
        self.known = (torch.rand(N, L, generator=draw) < 0.8).float()
        self.labels = (torch.rand(N, L, generator=draw) < 0.5).float() * self.known
        self.patients = torch.arange(N)
        self.column_features = torch.arange(K)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {"tabular": self.tabular[index], "tokens": self.tokens[index]}


def make_model(**options: Any) -> Model:
    model = woken(build_model(MedFusionNetOptions(**options), TASK, seed=2))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    return model


def make_plan() -> DpPlan:
    return training_plan(N, BATCH / N, noise=0.8, steps=3, clip=CLIP)


PRIVATE_OR_NOT = pytest.mark.parametrize("plan", [None, make_plan()], ids=["open", "private"])


def trained(
    plan: DpPlan | None = None,
    studies: Studies | None = None,
    public: int = 1,
    private: int = 2,
    **changes: Any,
) -> Tensor:
    """Weights after three steps."""
    model = make_model(auxiliary_heads=0.5, masked_labels=0.5)
    arguments: dict[str, Any] = {
        "options": SGD,
        "steps": 3,
        "device": torch.device("cpu"),
        "physical_batch": 32,
        "auxiliary_heads": 0.5,
        "masked_labels": 0.5,
    }
    fit(
        model,
        studies or Studies(),
        objective=Multilabel(),
        plan=plan,
        public=torch.Generator().manual_seed(public),
        private=Keystream(bytes(32), private),
        **(arguments | changes),
    )
    return torch.cat([value.detach().flatten() for value in trainable_state(model).values()])


def make_run(model: Model, **changes: Any) -> LocalRun:
    arguments: dict[str, Any] = {
        "auxiliary_heads": 0.0,
        "masked_labels": 0.0,
        "modality_dropout": 0.0,
    }
    return LocalRun(
        model=model,
        studies=Studies(),
        trainable=[],
        optimizer=make_optimizer(model, SGD, steps=1, progress=0.0, rounds=1),
        pull=None,
        device=torch.device("cpu"),
        physical_batch=32,
        autocast=make_autocast("float32", torch.device("cpu")),
        objective=Multilabel(),
        augmented=False,
        views=1,
        small_images=False,
        **(arguments | changes),
    )


def test_the_loss_is_that_of_all_heads_over_what_a_study_has_and_is_not_told() -> None:
    """Against a loop over studies, heads and labels."""
    model = make_model(auxiliary_heads=0.5, masked_labels=0.5)
    studies, index = Studies(), range(12)
    inputs = studies.inputs(torch.tensor(index), torch.device("cpu"))
    inputs["label_states"] = torch.randint(
        0, 3, (12, L), generator=torch.Generator().manual_seed(1)
    )
    outputs = model.outputs(inputs)
    run = make_run(model, auxiliary_heads=0.7, masked_labels=0.5)
    found = run.losses(inputs, studies.labels[:12], studies.known[:12])
    for study in index:
        has = {"fused": 1.0}
        if study % 7:
            has["tabular"] = 0.7
        if study % 5:
            has["text"] = 0.7
        expected = 0.0
        for name, weight in has.items():
            for label in range(L):
                if studies.known[study, label] and inputs["label_states"][study, label] == 0:
                    loss = binary_cross_entropy_with_logits(
                        outputs[name][study, label], studies.labels[study, label]
                    )
                    expected += weight * loss.item() / L
        assert found[study].item() == pytest.approx(expected, rel=1e-5)
    assert found.dtype == torch.float32


def test_plain_is_the_loss_of_the_logits() -> None:
    model, studies = make_model(), Studies()
    inputs = studies.inputs(torch.arange(6), torch.device("cpu"))
    labels, known = studies.labels[:6], studies.known[:6]
    run = make_run(model)
    assert run.plain
    expected = binary_cross_entropy_with_logits(model(inputs), labels, known, reduction="none")
    torch.testing.assert_close(run.losses(inputs, labels, known), expected.mean(dim=1))
    assert not make_run(model, masked_labels=0.1).plain
    assert not make_run(model, auxiliary_heads=0.1).plain


@PRIVATE_OR_NOT
@pytest.mark.parametrize(
    "change",
    [
        {"auxiliary_heads": 0.0},
        {"auxiliary_heads": 1.5},
        {"masked_labels": 0.0},
        {"masked_labels": 0.9},
    ],
    ids=str,
)
def test_each_option_changes_what_is_learned(plan: DpPlan | None, change: dict[str, Any]) -> None:
    assert not torch.allclose(trained(plan), trained(plan, **change), atol=1e-5)


@PRIVATE_OR_NOT
def test_physical_batch_does_not_change_what_is_told_hidden_and_learned(
    plan: DpPlan | None,
) -> None:
    whole, cut = (
        trained(plan, physical_batch=most, modality_dropout=0.4, steps=3 if plan else 12)
        for most in (32, 3)
    )
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_what_is_told_comes_from_the_public_stream_only_without_privacy() -> None:
    assert torch.equal(trained(), trained(private=9))
    assert not torch.equal(trained(), trained(public=9))


def test_what_is_told_and_hidden_comes_from_the_private_stream_only_under_a_plan() -> None:
    plan = make_plan()
    first, again = (trained(plan, public=seed, modality_dropout=0.4) for seed in (1, 9))
    assert torch.equal(first, again)


def test_a_contribution_is_bounded_and_does_not_depend_on_what_others_are_told() -> None:
    """The same draws and noise throughout; what the labels of one patient add is compared.

    With a step that everybody enters, another patient's labels change what is told of that
    patient, but not the clipped gradient of the one that is watched.
    """
    everybody = training_plan(N, 1.0, noise=0.8, clip=CLIP)
    watched, rates = 11, SGD.model_copy(update={"learning_rate": float(N)})  # a step is a sum

    def update(others_flipped: bool, watched_empty: bool) -> Tensor:
        studies = Studies()
        if others_flipped:
            flipped = (1 - studies.labels) * studies.known
            flipped[watched] = studies.labels[watched]
            studies.labels = flipped
        if watched_empty:  # no known label, no loss
            studies.labels[watched], studies.known[watched] = 0.0, 0.0
        return trained(everybody, studies, options=rates, steps=1, masked_labels=0.99)

    here = update(False, False) - update(False, True)
    there = update(True, False) - update(True, True)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)
    assert 0.5 * CLIP < float(here.norm()) < 1.001 * CLIP
    assert float((update(True, False) - update(False, False)).norm()) > CLIP
