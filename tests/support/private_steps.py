"""A small network and its private steps, weights staying as they are.

B samples, P parameters in one vector, C the clipping norm.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from plans import training_plan
from torch import Tensor, nn
from torch.nn import functional

from medfusion.privacy.dp_sgd import PrivateSteps
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan

SAMPLES = 11  # equals no other dimension below
CLIP = 0.3
Losses = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Smooth, with a convolution, a norm, a layer used twice and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)
        self.unused = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.conv(x)))
        h = functional.avg_pool2d(h, 3).flatten(1)
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(h)))))


def make_net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def make_data(seed: int = 1, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 1, 6, 6, generator=generator)
    # Sizes from far below to far above the clipping norm.
    y = (
        scale
        * torch.randn(SAMPLES, 3, generator=generator)
        * torch.logspace(-3, 2, SAMPLES)[:, None]
    )
    return x, y


def make_losses(net: nn.Module, x: Tensor, y: Tensor, *, bfloat16: bool = False) -> Losses:
    def losses(index: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            out = net(x[index])
        return (out.float() * y[index]).sum(1)

    return losses


def make_plan(noise_multiplier: float = 1e-20, clip: float = CLIP) -> DpPlan:
    return training_plan(40, 0.25, noise=noise_multiplier, clip=clip)


def gradient_of_step(
    net: nn.Module,
    losses: Losses,
    index: Tensor,
    *,
    plan: DpPlan | None = None,
    physical_batch: int = 32,
    seed: int = 0,
    public: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Return [P]: the step's (noised) sum of clipped gradients; weights stay as they are."""
    plan = plan or make_plan()
    found: list[Tensor] = []

    def look() -> None:
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]))

    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.0)
    with PrivateSteps(
        net,
        optimizer,
        plan,
        keystream=Keystream(bytes(32), seed),
        physical_batch=physical_batch,
        public_losses=public or public_losses(net),
        before_update=look,
    ) as steps:
        steps.step(index, losses)
    assert len(found) == 1
    return found[0] * plan.expected_batch


def public_losses(net: nn.Module) -> Callable[[int], Tensor]:
    """The losses of samples that are nobody's, as `PrivateSteps` asks for them."""
    x, y = make_data(seed=9)
    return lambda rows: make_losses(net, x, y)(torch.arange(rows))


def everybody() -> Tensor:
    return torch.arange(SAMPLES)
