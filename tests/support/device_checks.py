"""Checks that hold on any device: run on the CPU by the suite, on a GPU by ``tests/gpu``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from plans import training_plan
from torch import Tensor, nn

from medfusion.data.task import Task
from medfusion.models.contract import Model, trainable_state
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.objectives.multilabel import Multilabel, per_sample_loss
from medfusion.privacy.dp_sgd import engine_for
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.training.local_run import make_autocast
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions

PIXELS = 32
TASK = Task.parse(
    {
        "task": {"name": "devices", "kind": "multilabel"},
        "image": {"size": [PIXELS, PIXELS]},
        "text": {"max_tokens": 7},
        "features": {f"x{i}": {"kind": "numeric", "low": -1, "high": 1} for i in range(4)},
        "labels": {"names": ["a", "b", "c"]},
    },
    where="test",
)
CPU = torch.device("cpu")


class RandomStudies:
    """Studies whose labels follow from the tabular part; also what was asked of them."""

    def __init__(self, size: int = 12, pixels: int = PIXELS) -> None:
        draw = torch.Generator().manual_seed(0)
        self.labels = (torch.rand(size, 3, generator=draw) < 0.5).float()
        self.known = (torch.rand(size, 3, generator=draw) < 0.8).float()
        self.labels *= self.known
        self.patients = torch.arange(size)
        self.column_features = torch.arange(4)
        self._inputs = {
            "image": torch.rand(size, 1, pixels, pixels, generator=draw) * 2 - 1,
            "image_present": torch.rand(size, generator=draw) < 0.8,
            "tabular": torch.rand(size, 4, 6, generator=draw),
            "tokens": torch.randint(1, 500, (size, 7), generator=draw),
        }
        self._inputs["tabular"][..., 1] = 0.0
        self._inputs["tabular"][..., 2] = 1.0

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {name: whole[index].to(device) for name, whole in self._inputs.items()}


def make_model(**options: Any) -> Model:
    return build_model(MedFusionNetOptions(**options), TASK, seed=0)


def make_plan(steps: int, *, noise: float = 0.5, rate: float = 0.9) -> DpPlan:
    return training_plan(12, rate, noise=noise, steps=steps)


def train(
    model: nn.Module, device: torch.device, studies: RandomStudies | None = None, **changes: Any
) -> Tensor:
    """Train a round; return the trainable weights, flat, on the CPU."""
    plan = changes.get("plan")
    arguments: dict[str, Any] = {
        "options": TrainingOptions(batch_size=12, optimizer="sgd", learning_rate=0.05),
        "plan": None,
        "steps": plan.steps_per_round if plan else 2,
        "physical_batch": 12,
        "precision": "float32",
    }
    fit(
        model,
        studies or RandomStudies(),
        objective=Multilabel(),
        public=torch.Generator().manual_seed(1),
        private=Keystream(bytes(32), 2),
        device=device,
        **(arguments | changes),
    )
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in trainable_state(model).values()])


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No TF32, which rounds a GPU's float32 convolutions to ten bits."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def assert_near(found: Tensor, expected: Tensor, start: Tensor, tolerance: float) -> None:
    """What training changed differs by at most ``tolerance`` of itself."""
    change = (expected - start).norm()
    assert change > 0
    assert (found - expected).norm() <= tolerance * change


def check_agrees_with_the_cpu(device: torch.device) -> None:
    """Float32 training gives what the CPU gives, whose sums are taken in another order."""
    with exact_arithmetic():
        found = train(make_model(), device)
    expected = train(make_model(), CPU, physical_batch=5)
    assert_near(found, expected, flat(make_model()), 1e-3)


def check_cutting_batches(device: torch.device, precision: str, tolerance: float) -> None:
    """A logical batch in pieces gives the gradient of the whole."""
    start = flat(make_model())
    for plan in (None, make_plan(1)):
        common: dict[str, Any] = {"precision": precision, "steps": 1, "plan": plan}
        with exact_arithmetic():
            whole = train(make_model(), device, **common)
            pieces = train(make_model(), device, physical_batch=5, **common)
        assert_near(pieces, whole, start, tolerance)


def check_bfloat16_trains(device: torch.device, precision: str = "bfloat16") -> None:
    """Passes compute in bfloat16, weights stay float32, and the loss falls; under a plan too."""
    for private in (False, True):
        model, types = make_model(), []
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda _, __, out, types=types: types.append(out.dtype))
        arguments: dict[str, Any] = {
            "options": TrainingOptions(batch_size=12, learning_rate=3e-3),
            "physical_batch": 12,
            "precision": precision,
            "device": device,
        }
        losses = []
        for steps in (1, 12, 1):
            plan = make_plan(steps, noise=1e-3, rate=1.0) if private else None
            streams = {
                "public": torch.Generator().manual_seed(3),
                "private": Keystream(bytes(32), steps),
            }
            found = fit(
                model,
                RandomStudies(),
                objective=Multilabel(),
                plan=plan,
                steps=steps,
                **streams,
                **arguments,
            )
            losses.append(found.loss)
        assert set(types) == {torch.bfloat16}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert losses[2] < 0.9 * losses[0]


def per_sample_gradients(device: torch.device) -> dict[str, Tensor]:
    """By the engine of private training."""
    model, studies = make_model().to(device).train(), RandomStudies()
    engine = engine_for(model)
    found = engine.gradients(lambda: each_loss(model, studies, torch.arange(12), device)).by_sample
    engine.close()
    return {name: value.cpu() for name, value in found.items()}


def each_loss(
    model: nn.Module, studies: RandomStudies, index: Tensor, device: torch.device
) -> Tensor:
    with make_autocast("float32", device)():
        logits = model(studies.inputs(index, device))
    targets = studies.labels[index].to(device), studies.known[index].to(device)
    return per_sample_loss(logits, *targets)


def check_per_sample_gradients(device: torch.device) -> None:
    """Gradients by the engine are those of each study alone on the CPU."""
    with exact_arithmetic():
        found = per_sample_gradients(device)
    model, studies = make_model().train(), RandomStudies()
    assert found.keys() == trainable_state(model).keys()
    largest = max(float(gradient.norm()) for gradient in found.values())
    for study in range(12):
        model.zero_grad(set_to_none=True)
        each_loss(model, studies, torch.tensor([study]), CPU).sum().backward()
        for name, parameter in trainable_state(model).items():
            assert parameter.grad is not None, name
            error = (found[name][study] - parameter.grad).norm()
            assert error <= 1e-3 * parameter.grad.norm() + 1e-5 * largest, name


def check_running_out_of_memory(device: torch.device) -> None:
    """Out of memory (of more than 3 studies) halves the physical batch, not the result."""
    for plan in (None, make_plan(2)):
        model, seen = make_model(), []

        def fail_above_three(_: nn.Module, __: Any, out: Tensor, seen: list[int] = seen) -> None:
            seen.append(len(out))
            if len(out) > 3:
                raise torch.OutOfMemoryError

        hook = model.image.streams.norm.register_forward_hook(fail_above_three)
        with exact_arithmetic():
            found = train(model, device, plan=plan)
            hook.remove()
            expected = train(make_model(), device, plan=plan)
        assert max(seen) > 3
        assert seen[-1] <= 3
        assert_near(found, expected, flat(make_model()), 1e-3)


def check_resuming(device: torch.device, tolerance: float) -> None:
    """A round from saved weights is the round that a warm process would have made."""
    options = TrainingOptions(batch_size=12, schedule="cosine")
    warm = make_model()
    with exact_arithmetic():
        train(warm, device, options=options, rounds=2)
        state = {n: p.detach().cpu().clone() for n, p in trainable_state(warm).items()}
        start = flat(warm)
        expected = train(warm, device, options=options, rounds=2, progress=0.5)
        cold = make_model()
        cold.load_state_dict(state, strict=False)
        found = train(cold, device, options=options, rounds=2, progress=0.5)
    assert_near(found, expected, start, tolerance)
