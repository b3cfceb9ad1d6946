"""A planted signal in one modality is learned by the stream that reads it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from medfusion.data.task import Task
from medfusion.models.options import LogisticOptions, MedFusionNetOptions
from medfusion.models.registry import build_model

N, K, L, T = 256, 4, 2, 12
TASK = Task.parse(
    {
        "task": {"name": "learn", "kind": "multilabel"},
        "image": {"size": [32, 32]},
        "text": {"max_tokens": T},
        "features": {f"f{n}": {"kind": "numeric", "low": 0, "high": 1} for n in range(K)},
        "labels": {"names": ["one", "two"]},
    },
    where="test",
)


def cohort(signal: str, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Noise everywhere; each label marks one place of the modality ``signal``."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (N, L), generator=draw).float()
    image = 0.5 * torch.randn(N, 1, 32, 32, generator=draw)
    tabular = torch.zeros(N, K, 3 + L)
    tabular[..., 0] = 0.5 * torch.randn(N, K, generator=draw)
    tabular[..., 2] = 1.0
    tokens = torch.randint(200, 1000, (N, T), generator=draw)
    if signal == "image":
        image[:, :, 4:12, 4:12] += labels[:, 0, None, None, None]
        image[:, :, 18:28, 18:28] += labels[:, 1, None, None, None]
    elif signal == "tabular":
        tabular[:, :2, 0] += 2 * labels - 1
    else:
        tokens[:, 2] = 100 + labels[:, 0].long()
        tokens[:, 7] = 110 + labels[:, 1].long()
    present = torch.ones(N, dtype=torch.bool)
    inputs = {"image": image, "image_present": present, "tabular": tabular, "tokens": tokens}
    return inputs, labels


def auroc(scores: Tensor, labels: Tensor) -> float:
    positive, negative = scores[labels > 0], scores[labels == 0]
    return float((positive[:, None] > negative[None, :]).float().mean())


def train(
    options, signal: str, steps: int, learning_rate: float = 1e-3
) -> tuple[list[float], list[float]]:
    """Return the losses, and the AUROC of each label on fresh studies."""
    model = build_model(options, TASK, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    inputs, labels = cohort(signal, 1)
    draw, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        index = torch.randint(0, N, (32,), generator=draw)
        logits = model({name: value[index] for name, value in inputs.items()})
        loss = binary_cross_entropy_with_logits(logits, labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    inputs, labels = cohort(signal, 2)
    with torch.no_grad():
        logits = model(inputs)
    return losses, [auroc(logits[:, n], labels[:, n]) for n in range(L)]


@pytest.mark.parametrize("head", ["queries", "pooled"])
@pytest.mark.parametrize("signal", ["image", "tabular", "text"])
def test_one_modality_learns_its_signal(signal, head):
    options = MedFusionNetOptions(modalities=(signal,), head=head)
    losses, found = train(options, signal, steps=50)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert min(found) > 0.85


@pytest.mark.parametrize("signal", ["image", "tabular", "text"])
def test_the_fused_model_finds_the_signal_among_noise(signal):
    _, found = train(MedFusionNetOptions(), signal, steps=50)
    assert min(found) > 0.85


def test_a_model_cannot_see_what_it_does_not_read():
    _, found = train(MedFusionNetOptions(modalities=("tabular",)), "image", steps=30)
    assert max(found) < 0.65


def test_logistic_learns_from_the_columns():
    losses, found = train(LogisticOptions(), "tabular", steps=100, learning_rate=0.02)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # it starts at zero
    assert min(found) > 0.9
