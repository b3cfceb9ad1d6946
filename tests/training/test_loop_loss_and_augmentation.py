"""The loss and the augmentation of ``[training]`` as a round of training uses them."""

from dataclasses import replace
from math import exp
from typing import Any

import pytest
import torch
from plans import training_plan
from torch import Tensor, nn

from medfusion.objectives.multilabel import Multilabel, per_sample_loss
from medfusion.objectives.options import AsymmetricLoss, BceLoss, FocalLoss, LossOptions
from medfusion.privacy.adaptive_norm import RATE, AdaptiveNorm
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import epoch_batches
from medfusion.randomness import spawn
from medfusion.training import loop
from medfusion.training.loop import FitResult, fit
from medfusion.training.options import TrainingOptions

LABELS, COLUMNS, WORDS, SIZE = 3, 4, 9, 50
CPU = torch.device("cpu")
PLAN = training_plan(SIZE, 0.25, noise=0.8, steps=5)
PRIVATE_OR_NOT = pytest.mark.parametrize("plan", [None, PLAN])


class Studies:
    """Studies with image, features and note."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        tabular = torch.zeros(SIZE, COLUMNS, 3 + LABELS)
        tabular[..., 0] = torch.randn(SIZE, COLUMNS, generator=draw)
        tabular[..., 2] = 1.0
        self.whole = {
            "image": 2 * torch.rand(SIZE, 1, 8, 8, generator=draw) - 1,
            "image_present": torch.ones(SIZE, dtype=torch.bool),
            "tabular": tabular,
            "tokens": torch.randint(1, WORDS, (SIZE, 5), generator=draw),
        }
        self.labels = (tabular[:, :LABELS, 0] > 0.5).float()
        self.known = (torch.rand(SIZE, LABELS, generator=draw) < 0.8).float()
        self.labels *= self.known
        self.patients = torch.arange(SIZE)
        self.column_features = torch.arange(COLUMNS)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {name: values[index].to(device) for name, values in self.whole.items()}


class Net(nn.Module):
    """Remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Linear(64, 8)
        self.features = nn.Linear(COLUMNS * (3 + LABELS), 8)
        self.words = nn.Embedding(WORDS, 8)
        self.head = nn.Linear(8, LABELS)
        self.fed: list[dict[str, Tensor]] = []

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        self.fed.append(inputs)
        seen = self.pixels(inputs["image"].flatten(1)) + self.words(inputs["tokens"]).mean(1)
        out: Tensor = self.head(torch.tanh(seen + self.features(inputs["tabular"].flatten(1))))
        return out


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def run(net: Net, *, public: int = 1, private: int = 2, **changes: Any) -> FitResult:
    plan, physical = changes.pop("plan", None), changes.pop("physical_batch", 32)
    changes = {"learning_rate": 0.1} | changes
    steps = plan.steps_per_round if plan else changes.pop("steps", 5)
    return fit(
        net,
        Studies(),
        options=TrainingOptions(batch_size=10, optimizer="sgd", **changes),
        objective=Multilabel(changes.get("loss", BceLoss())),
        plan=plan,
        steps=steps,
        public=torch.Generator().manual_seed(public),
        private=Keystream(bytes(32), private),
        device=CPU,
        physical_batch=physical,
    )


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(**changes: Any) -> Tensor:
    net = make_net()
    run(net, **changes)
    return weights(net)


@pytest.mark.parametrize("loss", [FocalLoss(gamma=1.0), AsymmetricLoss(gamma_positive=0.5)])
@pytest.mark.parametrize("physical_batch", [3, 32])
def test_open_training_minimises_the_loss_asked_for(loss: LossOptions, physical_batch: int) -> None:
    net, bare, studies, losses = make_net(), make_net(), Studies(), []
    result = run(net, loss=loss, physical_batch=physical_batch)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    draw = torch.Generator().manual_seed(1)
    for index in epoch_batches(studies.patients, batch_size=10, steps=5, generator=draw):
        logits = bare(studies.inputs(index, CPU))
        value = per_sample_loss(logits, studies.labels[index], studies.known[index], loss).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    torch.testing.assert_close(weights(net), weights(bare), rtol=1e-5, atol=1e-7)
    assert result.loss == pytest.approx(sum(losses) / 5, rel=1e-5)


def studies_fed(net: Net, plan: DpPlan | None, views: int = 1) -> list[dict[str, Tensor]]:
    """What the model was fed of the site: under a plan, public studies come first."""
    return net.fed if plan is None else net.fed[views:]


@PRIVATE_OR_NOT
def test_each_loss_trains_another_model(plan: DpPlan | None) -> None:
    found = [trained(plan=plan, loss=loss) for loss in (BceLoss(), FocalLoss(), AsymmetricLoss())]
    assert torch.equal(found[0], trained(plan=plan))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((found[one] - found[other]).norm()) > 1e-3


@PRIVATE_OR_NOT
def test_augmentation_changes_what_the_model_sees(plan: DpPlan | None) -> None:
    plain, light = make_net(), make_net()
    run(plain, plan=plan, augmentation="none")
    run(light, plan=plan, augmentation="light")
    before, after = (
        {name: torch.cat([inputs[name] for inputs in fed]) for name in plain.fed[0]}
        for fed in (studies_fed(net, plan) for net in (plain, light))
    )
    whole = Studies().whole
    seen = {bytes(image.numpy().tobytes()) for image in whole["image"]}
    assert all(image.numpy().tobytes() in seen for image in before["image"])
    assert not any(image.numpy().tobytes() in seen for image in after["image"])
    for name, lacks in (
        ("tokens", after["tokens"] == 0),
        ("tabular", after["tabular"][..., 1] > 0),
    ):
        assert 0 < float(lacks.float().mean()) < 0.2, name
    assert not (before["tokens"] == 0).any()


@pytest.mark.parametrize("physical_batch", [1, 7])
@pytest.mark.parametrize("views", [1, 3])
@PRIVATE_OR_NOT
def test_views_do_not_depend_on_how_batches_are_cut(
    plan: DpPlan | None, views: int, physical_batch: int
) -> None:
    light = {"plan": plan, "augmentation": "light", "views": views}
    torch.testing.assert_close(
        trained(**light, physical_batch=physical_batch), trained(**light), rtol=1e-4, atol=1e-6
    )


def test_views_come_from_the_public_stream_or_under_a_plan_from_the_private_one() -> None:
    light = {"augmentation": "light"}
    assert torch.equal(trained(**light), trained(**light, private=9))
    assert torch.equal(trained(**light, plan=PLAN), trained(**light, plan=PLAN, public=9))
    assert not torch.equal(trained(**light, plan=PLAN), trained(**light, plan=PLAN, private=9))


def test_augmentation_does_not_change_who_is_drawn_under_a_plan() -> None:
    """The views have a stream of their own, which disturbs no other draw."""
    plain, light = make_net(), make_net()
    run(plain, plan=PLAN)
    run(light, plan=PLAN, augmentation="light")
    for one, other in zip(studies_fed(plain, PLAN), studies_fed(light, PLAN), strict=True):
        values = one["tabular"][..., 0], other["tabular"][..., 0]
        assert bool(((values[0] == values[1]) | (values[1] == 0)).all())


VIEWS = 3
ONE_STEP = replace(PLAN, sample_rate=1.0, expected_batch=50.0, steps_per_round=1)


def gradients_of_studies(fed: list[dict[str, Tensor]], drawn: Tensor) -> list[Tensor]:
    """Gradient, [P], of the mean loss over its views of each study ``drawn``, one by one.

    The passes in ``fed`` come in groups of `VIEWS`, each group with the same studies.
    """
    net, found, studies = make_net(), [], Studies()
    assert len(fed) % VIEWS == 0
    for start in range(0, len(fed), VIEWS):
        views = fed[start : start + VIEWS]
        for row in range(len(views[0]["tokens"])):
            study = drawn[len(found)]
            labels, known = studies.labels[study, None], studies.known[study, None]
            losses = [
                per_sample_loss(
                    net({name: x[row, None] for name, x in view.items()}), labels, known, BceLoss()
                )
                for view in views
            ]
            mean = torch.cat(losses).mean()
            parts = torch.autograd.grad(mean, list(net.parameters()))
            found.append(torch.cat([part.flatten() for part in parts]))
    return found


def test_under_a_plan_the_mean_over_views_is_clipped_once_for_each_patient() -> None:
    """Against a loop over studies and views; the noise is far below the clipping norm."""
    clip = 0.4
    plan = replace(ONE_STEP, noise_multiplier=1e-9, max_grad_norm=clip)
    net = make_net()
    run(net, plan=plan, augmentation="light", views=VIEWS, physical_batch=20)
    fed = studies_fed(net, plan, views=VIEWS)
    assert [len(inputs["tokens"]) for inputs in fed[:VIEWS]] == [6] * VIEWS  # 20 // 3
    each = gradients_of_studies(fed, torch.arange(SIZE))
    norms = torch.stack([gradient.norm() for gradient in each])
    assert len(each) == SIZE
    assert 2 < int((norms > clip).sum()) < SIZE - 2
    mean = sum(g * min(1.0, clip / float(g.norm())) for g in each) / SIZE
    torch.testing.assert_close(weights(net), weights(make_net()) - 0.1 * mean, rtol=0, atol=1e-6)


def test_without_privacy_a_step_follows_the_mean_over_views() -> None:
    net, draw = make_net(), torch.Generator().manual_seed(1)
    run(net, augmentation="light", views=VIEWS, steps=1, physical_batch=12)
    for _ in range(3):  # augmentation and what is hidden and told have streams of their own
        spawn(draw)
    (drawn,) = epoch_batches(Studies().patients, batch_size=10, steps=1, generator=draw)
    each = gradients_of_studies(net.fed, drawn)
    assert len(each) == 10
    mean = sum(each) / 10
    torch.testing.assert_close(weights(net), weights(make_net()) - 0.1 * mean, rtol=0, atol=1e-6)


@PRIVATE_OR_NOT
def test_more_views_train_another_model(plan: DpPlan | None) -> None:
    one, three = (trained(plan=plan, augmentation="light", views=views) for views in (1, VIEWS))
    assert float((one - three).norm()) > 1e-3


@pytest.mark.parametrize("clip", [0.25, 8.0])
def test_the_gradient_over_its_clipping_norm_moves_the_weights(clip: float) -> None:
    """Noise included; what FedProx pulls with is added after."""
    start = weights(make_net())
    plan = replace(ONE_STEP, max_grad_norm=clip)
    usual, rescaled = (
        trained(plan=replace(plan, unit_norm=unit_norm)) - start for unit_norm in (False, True)
    )
    torch.testing.assert_close(rescaled, usual / clip, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_a_norm_that_follows_a_quantile_trains_another_model_and_begins_each_round_anew(
    unit_norm: bool,
) -> None:
    plan = replace(PLAN, max_grad_norm=5.0, noise_multiplier=0.01, unit_norm=unit_norm)
    follows = replace(plan, clip_quantile=0.2)
    assert torch.equal(trained(plan=follows), trained(plan=follows))
    assert float((trained(plan=follows) - trained(plan=plan)).norm()) > 1e-3
    one_step = replace(plan, steps_per_round=1), replace(follows, steps_per_round=1)
    fixed, adaptive = (trained(plan=plan) for plan in one_step)
    torch.testing.assert_close(fixed, adaptive, rtol=0, atol=1e-3)  # but for the noise


def test_the_norm_gets_its_share_of_the_plans_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Noted(AdaptiveNorm):
        def __init__(self, start: float, **rest: Any) -> None:
            made.append((start, rest))
            super().__init__(start, **rest)

    monkeypatch.setattr(loop, "AdaptiveNorm", Noted)
    trained(plan=replace(PLAN, max_grad_norm=5.0, clip_quantile=0.3))
    ((start, rest),) = made
    assert (start, rest["quantile"], rest["expected_batch"]) == (5.0, 0.3, 12.5)
    assert rest["count_noise"] == pytest.approx(4 * PLAN.noise_multiplier)  # z^-2 / 16


def test_the_gradient_is_divided_by_the_norm_of_its_own_step() -> None:
    """Two steps on everybody that clip nobody: the second norm is the smaller one."""
    start, clip, quantile = weights(make_net()), 50.0, 0.2
    plan = replace(
        ONE_STEP,
        steps_per_round=2,
        noise_multiplier=1e-6,
        max_grad_norm=clip,
        clip_quantile=quantile,
    )
    usual, rescaled = (
        trained(plan=replace(plan, unit_norm=unit_norm), learning_rate=0.01) - start
        for unit_norm in (False, True)
    )
    second = clip * exp(-RATE * (1 - quantile))
    expected = usual * (1 / clip + 1 / second) / 2
    assert float((rescaled - expected).norm()) < 0.02 * float(expected.norm())
