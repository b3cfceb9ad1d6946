"""Weights lie channels-last while a model trains, and nobody else gets to see that."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from plans import training_plan
from torch import Tensor, nn

from medfusion.objectives.multilabel import Multilabel
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.training import loop
from medfusion.training.options import TrainingOptions

STUDIES, SIDE, LABELS = 24, 8, 2


class Images:
    """Random images, one of each patient."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randn(STUDIES, 3, SIDE, SIDE, generator=generator)
        self.labels = (self.image.mean((1, 2, 3)) > 0).float()[:, None].repeat(1, LABELS)
        self.known = torch.ones(STUDIES, LABELS)
        self.patients = torch.arange(STUDIES)
        self.column_features = torch.arange(0)

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {"image": self.image[index].to(device)}


class Net(nn.Module):
    """Notes how its weights lie when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, LABELS)
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        self.seen.add(layout_of(self.conv.weight))
        out: Tensor = self.head(torch.tanh(self.conv(inputs["image"])).mean((2, 3)))
        return out


def layout_of(weight: Tensor) -> tuple[bool, bool]:
    return weight.is_contiguous(memory_format=torch.channels_last), weight.is_contiguous()


def trained(plan: DpPlan | None) -> Net:
    torch.manual_seed(0)
    net = Net()
    loop.fit(
        net,
        Images(),
        objective=Multilabel(),
        public=torch.Generator().manual_seed(1),
        private=Keystream(bytes(32), 2),
        options=TrainingOptions(batch_size=8, optimizer="adamw", learning_rate=0.01),
        plan=plan,
        steps=5,
        device=torch.device("cpu"),
        physical_batch=32,
    )
    return net


def test_training_is_channels_last_and_ends_contiguous_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = trained(None)
    assert net.seen == {(True, False)}
    assert all(value.is_contiguous() for value in net.state_dict().values())
    monkeypatch.setattr(loop, "channels_last", nullcontext)
    plain = trained(None)
    assert plain.seen == {(False, True)}
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_a_private_step_reads_noised_gradients_that_lie_as_the_weights_do() -> None:
    """A fused optimiser would take the numbers of another layout for those of other places."""
    plan = training_plan(STUDIES, 0.25, noise=0.8, steps=5)
    assert trained(plan).seen == {(False, True)}


def test_a_round_that_fails_leaves_the_weights_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[Net] = []

    def failing(run: Any, *_: Any) -> float:
        nets.append(run.model)
        assert layout_of(run.model.conv.weight) == (True, False)
        raise FloatingPointError

    monkeypatch.setattr(loop, "fit_openly", failing)
    with pytest.raises(FloatingPointError):
        trained(None)
    assert layout_of(nets[0].conv.weight) == (False, True)
