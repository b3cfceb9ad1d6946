from dataclasses import replace
from typing import Any

import pytest
import torch
from plans import training_plan
from torch import Tensor, nn
from torch.nn import functional

from medfusion.errors import DataError
from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import epoch_batches
from medfusion.training.loop import FitResult, fit
from medfusion.training.options import TrainingOptions

LABELS = 3
COLUMNS = 4


class Studies:
    """Tabular and text studies whose labels the tabular part tells."""

    def __init__(self, size: int = 60, patients: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tabular = torch.zeros(size, COLUMNS, 3 + LABELS)
        self.tabular[..., 0] = torch.randn(size, COLUMNS, generator=generator)
        self.tabular[..., 2] = 1  # every column is selected
        self.tokens = torch.randint(1, 9, (size, 5), generator=generator)
        self.labels = (self.tabular[:, :LABELS, 0] > 0).float()
        self.known = (torch.rand(size, LABELS, generator=generator) < 0.8).float()
        self.labels *= self.known
        self.patients = torch.arange(size) % max(patients, 1)
        self.column_features = torch.arange(COLUMNS)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {
            "tabular": self.tabular[index].to(device),
            "tokens": self.tokens[index].to(device),
        }


class Net(nn.Module):
    """Remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(COLUMNS * (3 + LABELS), 8)
        self.words = nn.Embedding(9, 8)
        self.head = nn.Linear(8, LABELS)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.fed: list[dict[str, Tensor]] = []

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        assert self.training
        self.fed.append(inputs)
        h = self.hidden(inputs["tabular"].flatten(1)) + self.words(inputs["tokens"]).mean(1)
        out: Tensor = self.head(self.frozen(torch.tanh(h)))
        return out


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def make_private_plan(steps: int = 5) -> DpPlan:
    return training_plan(40, 0.25, noise=0.8, steps=steps)


PRIVATE_OR_NOT = pytest.mark.parametrize("plan", [None, make_private_plan()])


def run(
    net: Net, studies: Studies | None = None, *, public: int = 1, private: int = 2, **changes: Any
) -> FitResult:
    plan = changes.get("plan")
    arguments: dict[str, Any] = {
        "options": TrainingOptions(batch_size=10, optimizer="sgd", learning_rate=0.1),
        "plan": None,
        "steps": plan.steps_per_round if plan else 5,
        "device": torch.device("cpu"),
        "physical_batch": 32,
    }
    return fit(
        net,
        studies or Studies(),
        objective=Multilabel(),
        public=torch.Generator().manual_seed(public),
        private=Keystream(bytes(32), private),
        **(arguments | changes),
    )


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(**changes: Any) -> Tensor:
    net = make_net()
    run(net, **changes)
    return weights(net)


def test_open_training_equals_a_bare_loop() -> None:
    net, studies = make_net(), Studies()
    result = run(net, studies, steps=9)
    bare, losses = make_net(), []
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.1)
    batches = epoch_batches(
        studies.patients, batch_size=10, steps=9, generator=torch.Generator().manual_seed(1)
    )
    for index in batches:
        loss = functional.binary_cross_entropy_with_logits(
            bare(studies.inputs(index, torch.device("cpu"))),
            studies.labels[index],
            weight=studies.known[index],
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.equal(weights(net), weights(bare))
    assert result.steps == 9
    assert result.loss == pytest.approx(sum(losses) / 9, rel=1e-5)


@PRIVATE_OR_NOT
def test_same_seeds_same_weights_bit_for_bit(plan: DpPlan | None) -> None:
    first = trained(plan=plan)
    torch.rand(7)  # the global stream plays no part
    assert torch.equal(first, trained(plan=plan))
    assert not torch.equal(first, weights(make_net()))


def test_open_training_draws_from_the_public_stream_only() -> None:
    assert torch.equal(trained(), trained(private=9))
    assert not torch.equal(trained(), trained(public=9))


def test_private_training_draws_from_the_private_stream_only() -> None:
    plan, dropout = make_private_plan(), {"modality_dropout": 0.4}
    assert torch.equal(trained(plan=plan, **dropout), trained(plan=plan, public=9, **dropout))
    assert not torch.equal(trained(plan=plan), trained(plan=plan, private=9))


@pytest.mark.parametrize("physical_batch", [1, 7])
@PRIVATE_OR_NOT
def test_physical_batch_does_not_change_the_result(
    plan: DpPlan | None, physical_batch: int
) -> None:
    cut = trained(plan=plan, physical_batch=physical_batch)
    torch.testing.assert_close(cut, trained(plan=plan), rtol=1e-4, atol=1e-6)


@PRIVATE_OR_NOT
def test_physical_batch_bounds_every_pass(plan: DpPlan | None) -> None:
    net = make_net()
    run(net, plan=plan, physical_batch=4)
    assert max(len(inputs["tabular"]) for inputs in net.fed) == 4


@pytest.mark.parametrize("private", [False, True])
def test_proximal_term_pulls_towards_the_received_weights(private: bool) -> None:
    def after(steps: int, **changes: Any) -> Tensor:
        return trained(plan=make_private_plan(steps) if private else None, steps=steps, **changes)

    # Draws, noise and losses are the same with and without the term: the first step starts at
    # the received weights, the second is pulled back by rate * mu * distance, unclipped.
    start, one, two = weights(make_net()), after(1), after(2)
    pulled = after(2, proximal_mu=70.0)
    torch.testing.assert_close(pulled, two - 0.1 * 70.0 * (one - start), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("unit_norm", [False, True])
def test_a_shift_moves_every_step_unclipped(private: bool, unit_norm: bool) -> None:
    def after(**changes: Any) -> Tensor:
        plan = replace(make_private_plan(1), max_grad_norm=4.0, unit_norm=unit_norm)
        return trained(plan=plan if private else None, steps=1, **changes)

    net = make_net()
    learned = {name: value for name, value in net.named_parameters() if value.requires_grad}
    shift = {name: torch.full_like(value, 7.0) for name, value in learned.items()}
    moved = torch.cat([torch.full((p.numel(),), 0.7 * p.requires_grad) for p in net.parameters()])
    torch.testing.assert_close(after(gradient_shift=shift), after() - moved, rtol=1e-4, atol=1e-5)


def test_the_proximal_term_is_not_divided_by_the_clipping_norm() -> None:
    def after(steps: int, **changes: Any) -> Tensor:
        plan = replace(make_private_plan(steps), max_grad_norm=4.0, unit_norm=True)
        return trained(plan=plan, steps=steps, **changes)

    start, one, two = weights(make_net()), after(1), after(2)
    pulled = after(2, proximal_mu=70.0)
    torch.testing.assert_close(pulled, two - 0.1 * 70.0 * (one - start), rtol=1e-4, atol=1e-5)


@PRIVATE_OR_NOT
def test_modality_dropout_hides_one_modality_but_never_both(plan: DpPlan | None) -> None:
    net = make_net()
    run(net, plan=plan, modality_dropout=0.5)
    tabular = torch.cat([x["tabular"][:, 0, 1] == 0 for x in net.fed])
    text = torch.cat([(x["tokens"] > 0).any(1) for x in net.fed])
    assert bool((tabular | text).all())
    assert 0 < int((~tabular).sum()) < len(tabular)
    assert 0 < int((~text).sum()) < len(text)
    kept = make_net()
    run(kept, plan=plan)
    assert all(bool((x["tabular"][..., 1] == 0).all()) for x in kept.fed)


def test_plan_takes_exactly_its_steps() -> None:
    with pytest.raises(ValueError, match="plan's 5"):
        run(make_net(), plan=make_private_plan(), steps=6)


@PRIVATE_OR_NOT
def test_frozen_parameters_and_the_mode_stay(plan: DpPlan | None) -> None:
    net = make_net().eval()
    before = net.frozen.weight.clone()
    run(net, plan=plan, options=TrainingOptions(batch_size=10, weight_decay=0.1))
    assert torch.equal(net.frozen.weight, before)
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adamw", 0.02)])
def test_open_training_learns(optimizer: Any, rate: float) -> None:
    net, studies = make_net(), Studies(200, 200)
    options = TrainingOptions(batch_size=10, optimizer=optimizer, learning_rate=rate)
    first = run(net, studies, options=options, steps=20).loss
    last = run(net, studies, options=options, steps=400).loss
    assert first is not None
    assert last is not None
    assert last < 0.8 * first


@PRIVATE_OR_NOT
def test_bfloat16_is_for_passes_only(plan: DpPlan | None) -> None:
    net, types = make_net(), []
    net.head.register_forward_hook(lambda module, args, out: types.append(out.dtype))
    result = run(net, plan=plan, precision="bfloat16")
    assert set(types) == {torch.bfloat16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    types.clear()
    run(net, plan=plan)  # auto: float32 on a CPU
    assert set(types) == {torch.float32}
    assert result.loss is not None


def test_running_out_of_memory_repeats_the_batch_in_smaller_pieces() -> None:
    class Greedy(Net):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            hook = self.hidden.register_forward_hook(self.watch)
            out = super().forward(inputs)
            hook.remove()
            return out

        def watch(self, module: nn.Module, args: Any, out: Tensor) -> None:
            if len(out) > 3:
                out.register_hook(self.fail)  # by then the head has its gradient

        def fail(self, gradient: Tensor) -> None:
            raise torch.OutOfMemoryError

    net = Greedy()
    net.load_state_dict(make_net().state_dict())
    run(net, physical_batch=8)
    torch.testing.assert_close(weights(net), trained(), rtol=1e-4, atol=1e-6)


def test_site_without_studies_cannot_train_openly_but_still_makes_noise() -> None:
    studies = Studies(0, 0)
    with pytest.raises(DataError, match="at least one training study"):
        run(make_net(), studies)
    net = make_net()
    result = run(net, studies, plan=make_private_plan())
    assert result.loss is None
    assert not torch.equal(net.head.weight, make_net().head.weight)
