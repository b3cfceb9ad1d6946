from math import cos, pi
from typing import Any

import pytest
import torch
from device_checks import CPU, RandomStudies, flat, make_model, make_plan, train
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from medfusion.data.task import Task
from medfusion.models.contract import trainable_state
from medfusion.models.options import LogisticOptions, MedFusionNetOptions, TextOptions
from medfusion.models.parts import part_of
from medfusion.models.registry import build_model
from medfusion.training.optimizer import make_optimizer
from medfusion.training.options import TrainingOptions

PARTS = ("image", "tabular", "text", "head")

SGD = {"optimizer": "sgd", "batch_size": 12, "learning_rate": 0.05}
TABULAR = {"modalities": ("tabular",)}


def sgd(**changes: Any) -> TrainingOptions:
    return TrainingOptions.parse(SGD | changes, where="test")


class Parts(nn.Module):
    """One small layer for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, 4, 8, 8)
        self.tabular = nn.Linear(24, 4)
        self.text = nn.Embedding(500, 4)
        self.head = nn.Linear(4, 3)
        self.seen: list[Tensor] = []

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        self.seen.append(inputs["image"])
        image = self.image(inputs["image"]).mean(dim=(2, 3))
        out: Tensor = self.head(
            image + self.tabular(inputs["tabular"].flatten(1)) + self.text(inputs["tokens"]).mean(1)
        )
        return out


def make_parts() -> Parts:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Parts()


def changes_by_part(model: nn.Module, start: nn.Module) -> dict[str, Tensor]:
    """What training changed, flat, by part."""
    parts: dict[str, list[Tensor]] = {}
    before = trainable_state(start)
    for name, parameter in trainable_state(model).items():
        parts.setdefault(part_of(name), []).append((parameter - before[name]).detach().flatten())
    return {part: torch.cat(found) for part, found in parts.items()}


def trained_parts(**changes: Any) -> dict[str, Tensor]:
    model = make_parts()
    train(model, CPU, **changes)
    return changes_by_part(model, make_parts())


def rates_of_a_run(schedule: str) -> list[float]:
    """The rate of each of 4 steps of 3 rounds, from what a gradient of 1 takes away."""
    rates = []
    for number in range(3):
        model = nn.Linear(1, 1, bias=False).double()
        options = sgd(schedule=schedule)
        optimizer = make_optimizer(model, options, steps=4, progress=number / 3, rounds=3)
        for _ in range(4):
            before = model.weight.item()
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
            rates.append(before - model.weight.item())
    return rates


def test_cosine_falls_from_step_to_step_over_the_whole_run() -> None:
    expected = [0.05 * (1 + cos(pi * step / 12)) / 2 for step in range(12)]
    assert rates_of_a_run("cosine") == pytest.approx(expected, abs=1e-12)
    assert rates_of_a_run("constant") == pytest.approx([0.05] * 12, abs=1e-12)


@pytest.mark.parametrize("plan", [None, make_plan(1)])
def test_fit_follows_the_schedule_private_or_not(plan: Any) -> None:
    start = flat(make_model(**TABULAR))
    common = {"plan": plan, "steps": 1, "progress": 0.5, "rounds": 2}
    falling, constant = (
        train(make_model(**TABULAR), CPU, options=sgd(schedule=schedule), **common) - start
        for schedule in ("cosine", "constant")
    )
    torch.testing.assert_close(falling, constant / 2, rtol=1e-3, atol=3e-7)


def test_fit_knows_how_wide_a_round_is() -> None:
    options = sgd(schedule="cosine")
    alone, first = (
        train(make_model(**TABULAR), CPU, options=options, steps=4, rounds=rounds)
        for rounds in (1, 100)
    )
    constant = train(make_model(**TABULAR), CPU, options=sgd(), steps=4)
    assert (first - constant).norm() < 0.01 * (alone - constant).norm()


def test_every_parameter_is_in_exactly_one_group() -> None:
    task = Task.parse(
        {
            "task": {"name": "groups", "kind": "multilabel"},
            "image": {"size": [32, 32]},
            "text": {"max_tokens": 5},
            "features": {"x": {"kind": "binary"}},
            "labels": {"names": ["a", "b"]},
        },
        where="test",
    )
    net = MedFusionNetOptions
    for options, parts in (
        (net(text=TextOptions(freeze=False)), {*PARTS, "linear"}),
        (net(gating="token", auxiliary_heads=0.3, head="pooled"), {*PARTS, "linear"}),
        (net(modalities=("image",), size="small"), {"image", "head", "linear"}),
        (net(linear_path=False), set(PARTS)),
        (LogisticOptions(), {"linear", "head"}),
    ):
        model = build_model(options, task, seed=0)
        multipliers = {part: 1.0 + place for place, part in enumerate(sorted(parts))}
        chosen = sgd(rate_multipliers=multipliers)
        optimizer = make_optimizer(model, chosen, steps=1, progress=0.0, rounds=1)
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(rates)
        assert rates == {
            id(p): pytest.approx(0.05 * multipliers[part_of(name)])
            for name, p in trainable_state(model).items()
        }


def test_parts_are_told_by_the_modalities_of_the_model() -> None:
    names = {part_of(name) for name in trainable_state(make_model(modalities=("tabular",)))}
    assert names == {"tabular", "head", "linear"}
    encoder = dict(make_model().named_parameters())
    assert {part_of(n) for n in encoder if n.startswith(("text.", "text_encoder."))} == {"text"}
    assert part_of("imageless.weight") == "head"
    assert part_of("linear.text.weight") == "linear"


def test_a_multiplier_scales_the_steps_of_its_part_alone() -> None:
    plain = trained_parts(options=sgd(), steps=1)
    scaled = trained_parts(
        options=sgd(rate_multipliers={"image": 0.25, "tabular": 4.0, "text": 2.0}), steps=1
    )
    for part, factor in {"image": 0.25, "tabular": 4.0, "text": 2.0, "head": 1.0}.items():
        # atol: what float32 makes of weights of about 1
        torch.testing.assert_close(scaled[part], factor * plain[part], rtol=1e-3, atol=3e-7)


def test_private_steps_take_multipliers_after_one_clip_over_all_parts() -> None:
    quiet = make_plan(1, noise=1e-9)
    plain = trained_parts(options=sgd(learning_rate=1.0), plan=quiet)
    multipliers = {"image": 0.5, "head": 3.0}
    scaled = trained_parts(options=sgd(learning_rate=1.0, rate_multipliers=multipliers), plan=quiet)
    for part in PARTS:
        factor = multipliers.get(part, 1.0)
        torch.testing.assert_close(scaled[part], factor * plain[part], rtol=1e-3, atol=1e-6)


def test_cosine_and_multipliers_go_together() -> None:
    common: dict[str, Any] = {"steps": 1, "progress": 0.5, "rounds": 2}
    plain = trained_parts(options=sgd(), **common)
    both = trained_parts(
        options=sgd(schedule="cosine", rate_multipliers={"tabular": 4.0}), **common
    )
    torch.testing.assert_close(both["tabular"], 2 * plain["tabular"], rtol=1e-3, atol=3e-7)
    torch.testing.assert_close(both["head"], plain["head"] / 2, rtol=1e-3, atol=3e-7)


def test_a_part_that_the_model_lacks_has_nothing_to_multiply() -> None:
    models = [make_model(**TABULAR), make_model(**TABULAR)]
    for model, multipliers in zip(models, ({"image": 2.0}, {}), strict=True):
        train(model, CPU, options=sgd(rate_multipliers=multipliers))
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("plan", [None, make_plan(1)])
def test_the_first_rounds_train_on_images_of_half_the_size(plan: Any) -> None:
    common: dict[str, Any] = {"plan": plan, "steps": 1, "rounds": 4}
    sides, weights = [], []
    for number in range(4):
        model = make_parts()
        options, progress = sgd(small_images=0.5), number / 4
        weights.append(train(model, CPU, options=options, progress=progress, **common))
        sides.append({tuple(image.shape[2:]) for image in model.seen})
    assert sides == [{(16, 16)}] * 2 + [{(32, 32)}] * 2
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[1], weights[2])
    assert torch.equal(weights[3], train(make_parts(), CPU, options=sgd(), **common))


def test_a_small_image_is_the_mean_of_its_pixels_by_four() -> None:
    model, studies = make_parts(), RandomStudies()
    train(model, CPU, studies, options=sgd(small_images=0.5), steps=1)
    whole = studies.inputs(torch.arange(12), CPU)["image"]
    means = whole.unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean(dim=(3, 5))
    for image in means:
        assert min(float((image - other).abs().max()) for other in model.seen[0]) < 1e-6


@pytest.mark.parametrize("size", ["tiny", "small", "121"])
def test_every_size_reads_images_of_half_the_size(size: str) -> None:
    model = make_model(size=size, modalities=("image",)).eval()
    for name, parameter in model.named_parameters():
        if ".gather." in name and ".out." in name:  # silent until trained
            nn.init.normal_(parameter)
    image, present = torch.rand(1, 1, 16, 16), torch.ones(1, dtype=torch.bool)
    with torch.no_grad():
        small = model({"image": image, "image_present": present})
        other = model({"image": 1 - image, "image_present": present})
    assert small.shape == (1, 3)
    assert not torch.equal(small, other)


@pytest.mark.parametrize("plan", [None, make_plan(2)])
def test_adamw_steps_are_those_of_the_textbook(plan: Any) -> None:
    """Fused or not, the same update to rounding; here after a round of 2 steps."""
    options = TrainingOptions(batch_size=12, weight_decay=0.1, learning_rate=0.01)
    model = make_model(**TABULAR)
    gradients: list[dict[str, Tensor]] = []

    def keep(optimizer: Optimizer, *_: object) -> None:
        gradients.append({n: p.grad.clone() for n, p in trainable_state(model).items()})

    handle = register_optimizer_step_pre_hook(keep)
    found = train(model, CPU, options=options, plan=plan)
    handle.remove()
    reference = make_model(**TABULAR)
    state = trainable_state(reference)
    mean = {n: torch.zeros_like(p) for n, p in state.items()}
    square = {n: torch.zeros_like(p) for n, p in state.items()}
    with torch.no_grad():
        for step, gradient in enumerate(gradients[-2:], start=1):
            for n, p in state.items():
                mean[n] = 0.9 * mean[n] + 0.1 * gradient[n]
                square[n] = 0.999 * square[n] + 0.001 * gradient[n] ** 2
                scale = (square[n] / (1 - 0.999**step)).sqrt() + 1e-8
                p.mul_(1 - 0.01 * 0.1).sub_(0.01 * mean[n] / (1 - 0.9**step) / scale)
    torch.testing.assert_close(found, flat(reference), rtol=1e-5, atol=1e-6)
