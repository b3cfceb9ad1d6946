"""Layers, what goes into them, and the gradients of single samples."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from medfusion.models.blocks.standardized import StandardizedConv2d
from medfusion.privacy.book_keeping.engine import BookKeeping

B = 5  # equals no other dimension below


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A layer or model whose parameters are all away from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 * torch.randn_like(value))
    return model


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def each_loss(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return torch.tanh(out + 0.1).pow(2).flatten(1).sum(1)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def one_by_one(
    model: nn.Module, x: Tensor, losses: Callable[[nn.Module, Tensor], Tensor] = each_loss
) -> dict[str, Tensor]:
    wanted, rows = trained(model), []
    for j in range(len(x)):
        loss = losses(model, x[j : j + 1]).sum()
        rows.append(
            torch.autograd.grad(
                loss, list(wanted.values()), allow_unused=True, materialize_grads=True
            )
        )
    return dict(zip(wanted, map(torch.stack, zip(*rows, strict=True)), strict=True))


def found_by_engine(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return BookKeeping(model).gradients(lambda: each_loss(model, x)).by_sample


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert float(value.norm()) > 0, name
        assert float((found[name] - value).norm()) <= tolerance * float(value.norm()), name


IDS = torch.tensor([[0, 3, 3], [1, 1, 1], [2, 0, 6], [6, 5, 4], [0, 0, 2]])
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), values(B, 3, 7, 6)),
    "conv_one_channel": (lambda: nn.Conv2d(1, 4, 3, 2, 1, bias=False), values(B, 1, 8, 7)),
    "conv_many_channels": (lambda: nn.Conv2d(18, 4, 3, 2, 1), values(B, 18, 8, 7)),
    "conv_oblong": (
        lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
        values(B, 3, 8, 7),
    ),
    "conv_groups": (
        lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2),
        values(B, 6, 7, 6),
    ),
    "conv_many_groups": (lambda: nn.Conv2d(34, 4, 3, groups=2), values(B, 34, 4, 3)),
    "conv_same": (lambda: nn.Conv2d(3, 4, (3, 5), padding="same"), values(B, 3, 7, 6)),
    "conv_reflect": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        values(B, 3, 7, 6),
    ),
    "conv_pointwise": (lambda: nn.Conv2d(3, 4, 1), values(B, 3, 7, 6)),
    "conv_pointwise_strided": (lambda: nn.Conv2d(6, 4, 1, 2, groups=2), values(B, 6, 7, 6)),
    "conv_pointwise_padded": (lambda: nn.Conv2d(3, 4, 1, padding=1), values(B, 3, 7, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, 2, 1), values(B, 3, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, 2, 1), values(B, 2, 6, 4, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), values(B, 3, 4, 6)),
    "transposed_groups": (lambda: nn.ConvTranspose2d(6, 4, 2, 2, groups=2), values(B, 6, 4, 3)),
    "transposed_pointwise": (lambda: nn.ConvTranspose2d(3, 4, 1), values(B, 3, 4, 6)),
    "transposed3d": (lambda: nn.ConvTranspose3d(3, 2, 2, 2), values(B, 3, 2, 4, 3)),
    "standardized": (
        lambda: StandardizedConv2d(3, 4, 3, padding=1, bias=False),
        values(B, 3, 7, 6),
    ),
    "standardized_pointwise": (
        lambda: StandardizedConv2d(3, 4, 1, bias=False),
        values(B, 3, 7, 6),
    ),
    "standardized_groups": (lambda: StandardizedConv2d(6, 4, 3, groups=2), values(B, 6, 7, 8)),
    "linear": (lambda: nn.Linear(6, 4), values(B, 6)),
    "linear_tokens": (lambda: nn.Linear(6, 4), values(B, 3, 6)),
    "linear_grid": (lambda: nn.Linear(6, 4, bias=False), values(B, 3, 2, 6)),
    "group_norm": (lambda: nn.GroupNorm(2, 6), values(B, 6, 4, 3)),
    "group_norm_vector": (lambda: nn.GroupNorm(2, 6), values(B, 6)),
    "layer_norm": (lambda: nn.LayerNorm(6), values(B, 3, 6)),
    "layer_norm_vector": (lambda: nn.LayerNorm(6), values(B, 6)),
    "layer_norm_plane": (lambda: nn.LayerNorm((4, 6), bias=False), values(B, 3, 4, 6)),
    "embedding": (lambda: nn.Embedding(7, 4), IDS),
    "embedding_padded": (lambda: nn.Embedding(7, 4, padding_idx=3), IDS),
    "embedding_one_id": (lambda: nn.Embedding(7, 4), IDS[:, 0]),
}
