"""FedRep's turns: what moves in which step, and that it is what a plain loop does."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from plans import training_plan
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import epoch_batches
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions

STUDIES, COLUMNS, LABELS = 40, 4, 2
OWN = frozenset({"head.weight", "head.bias"})
STEPS, OWN_STEPS = 5, 2


class Studies:
    """Random columns that tell the labels."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tabular = torch.randn(STUDIES, COLUMNS, generator=generator)
        self.labels = (self.tabular[:, :LABELS] > 0).float()
        self.known = torch.ones(STUDIES, LABELS)
        self.patients = torch.arange(STUDIES)
        self.column_features = torch.arange(COLUMNS)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {"tabular": self.tabular[index].to(device)}


class Net(nn.Module):
    """A representation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(COLUMNS, 6)
        self.head = nn.Linear(6, LABELS)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs["tabular"])))
        return out


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def train(net: Net, plan: DpPlan | None, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "options": TrainingOptions(batch_size=10, optimizer="sgd", learning_rate=0.1),
        "own": OWN,
        "own_steps": OWN_STEPS,
    }
    fit(
        net,
        Studies(),
        objective=Multilabel(),
        public=torch.Generator().manual_seed(1),
        private=Keystream(bytes(32), 2),
        plan=plan,
        steps=STEPS,
        device=torch.device("cpu"),
        physical_batch=32,
        **(arguments | changes),
    )


def parts(net: Net) -> tuple[Tensor, ...]:
    return tuple(nn.utils.parameters_to_vector(part.parameters()) for part in (net.head, net.body))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "plan", [None, training_plan(STUDIES, 0.25, noise=0.8, steps=STEPS)], ids=["open", "private"]
)
def test_the_own_part_moves_first_and_alone_and_then_the_rest(
    plan: DpPlan | None, optimizer: Any
) -> None:
    net = make_net()
    seen = [parts(net)]
    hook = register_optimizer_step_post_hook(lambda *_: seen.append(parts(net)))
    try:
        options = TrainingOptions(batch_size=10, optimizer=optimizer, weight_decay=0.1)
        train(net, plan, options=options, proximal_mu=0.5)
    finally:
        hook.remove()
    moved = [
        tuple(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        for before, after in pairwise(seen)
    ]
    assert moved == [(True, False)] * OWN_STEPS + [(False, True)] * (STEPS - OWN_STEPS)


def test_the_steps_are_those_of_a_plain_loop() -> None:
    net, expected, studies = make_net(), make_net(), Studies()
    train(net, None, proximal_mu=0.5)
    start = make_net()
    batches = epoch_batches(
        studies.patients,
        batch_size=10,
        steps=STEPS,
        generator=torch.Generator().manual_seed(1),
    )
    for number, index in enumerate(batches):
        out = expected({"tabular": studies.tabular[index]})
        loss = functional.binary_cross_entropy_with_logits(out, studies.labels[index])
        name = "head" if number < OWN_STEPS else "body"
        moving, received = (list(getattr(n, name).parameters()) for n in (expected, start))
        gradients = torch.autograd.grad(loss, moving)
        with torch.no_grad():
            for value, gradient, before in zip(moving, gradients, received, strict=True):
                value -= 0.1 * (gradient + 0.5 * (value - before))
    for one, other in zip(parts(net), parts(expected), strict=True):
        torch.testing.assert_close(one, other)
