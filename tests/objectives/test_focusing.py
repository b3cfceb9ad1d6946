"""Focal and asymmetric losses against their formulas in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medfusion.errors import ConfigError
from medfusion.objectives.multilabel import mean_loss, per_sample_loss
from medfusion.objectives.options import AsymmetricLoss, BceLoss, FocalLoss, LossOptions
from medfusion.training.options import TrainingOptions

B, L = 7, 4
GAPS = (np.random.default_rng(2).random((B, L)) < 0.7).astype(np.float64)
LABELS = (np.random.default_rng(1).random((B, L)) < 0.4) * GAPS
LOSSES = [
    BceLoss(),
    FocalLoss(),
    FocalLoss(gamma=0.5),
    AsymmetricLoss(),
    AsymmetricLoss(gamma_positive=1.5, gamma_negative=0.5, clip=0.2),
    AsymmetricLoss(gamma_positive=0.5, gamma_negative=3.0, clip=0.0),
    AsymmetricLoss(gamma_positive=0.0, gamma_negative=0.0, clip=0.05),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def draw(scale: float = 2.0) -> NDArray[Any]:
    return scale * np.random.default_rng(0).normal(size=(B, L))


def by_formula(logits: NDArray[Any], loss: LossOptions) -> NDArray[Any]:
    """The papers' formulas with probabilities in float64, per sample [B]."""
    p, y = 1 / (1 + np.exp(-logits)), LABELS
    if isinstance(loss, AsymmetricLoss):
        m = np.maximum(p - loss.clip, 0)
        present = -((1 - p) ** loss.gamma_positive) * np.log(p)
        absent = -(m**loss.gamma_negative) * np.log(1 - m)
        each = np.where(y > 0, present, absent)
    else:
        q = np.where(y > 0, p, 1 - p)
        gamma = loss.gamma if isinstance(loss, FocalLoss) else 0.0
        each = -((1 - q) ** gamma) * np.log(q)
    return (each * GAPS).sum(axis=1) / L


def tensors(logits: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, known = (torch.tensor(a, dtype=torch.float32) for a in (logits, LABELS, GAPS))
    return x.requires_grad_(), y, known


@every_loss
def test_loss_is_the_formula(loss: LossOptions) -> None:
    logits = draw()
    found = per_sample_loss(*tensors(logits), loss)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), by_formula(logits, loss), rtol=2e-5)
    mean = mean_loss(*tensors(logits), loss).detach()
    assert float(mean) == pytest.approx(by_formula(logits, loss).mean(), rel=2e-5)


@every_loss
def test_gradient_is_the_formulas_difference(loss: LossOptions) -> None:
    logits, step = draw(), 1e-6
    x, y, known = tensors(logits)
    per_sample_loss(x, y, known, loss).sum().backward()
    expected = np.empty((B, L))
    for cell in np.ndindex(B, L):
        moved = np.zeros((B, L))
        moved[cell] = step
        ahead, behind = (by_formula(logits + s * moved, loss).sum() for s in (1, -1))
        expected[cell] = (ahead - behind) / (2 * step)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-3, atol=1e-7)


@every_loss
@pytest.mark.parametrize("size", [30.0, 200.0, 1e4, 1e30])
def test_far_logits_have_finite_losses_and_gradients(loss: LossOptions, size: float) -> None:
    x, y, known = tensors(np.where(draw() > 0, size, -size))
    losses = per_sample_loss(x, y, known, loss)
    losses.sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(losses).all())
    assert bool(torch.isfinite(x.grad).all())


def test_the_edge_of_the_clip_has_finite_gradients() -> None:
    x = torch.linspace(-1e-6, 1e-6, 41)[None].requires_grad_()
    assert 0.5 in torch.sigmoid(x)  # the very edge
    loss = AsymmetricLoss(gamma_negative=0.5, clip=0.5)
    per_sample_loss(x, torch.zeros_like(x), torch.ones_like(x), loss).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert float(x.grad.abs().max()) < 1e-3


@pytest.mark.parametrize(
    "loss",
    [FocalLoss(gamma=0.0), AsymmetricLoss(gamma_positive=0.0, gamma_negative=0.0, clip=0.0)],
    ids=repr,
)
def test_without_focusing_it_is_cross_entropy(loss: LossOptions) -> None:
    found, expected = tensors(draw(8.0)), tensors(draw(8.0))
    each, plain = per_sample_loss(*found, loss), per_sample_loss(*expected)
    torch.testing.assert_close(each, plain, rtol=1e-6, atol=1e-7)
    each.sum().backward()
    plain.sum().backward()
    torch.testing.assert_close(found[0].grad, expected[0].grad, rtol=1e-5, atol=1e-7)


@every_loss
def test_unknown_labels_cost_nothing_and_samples_do_not_mix(loss: LossOptions) -> None:
    x, y, known = tensors(np.abs(draw()))  # above every clip
    before = per_sample_loss(x, y, known, loss)
    before[5].backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, (known * (torch.arange(B) == 5)[:, None]) > 0)
    changed = x.detach().clone()
    changed[0] = 3.0
    after = per_sample_loss(changed, y, known, loss)
    assert torch.equal(after[1:], before[1:])


def test_easy_negatives_count_less_under_focusing() -> None:
    easy = torch.tensor([[-2.0]]), torch.zeros(1, 1), torch.ones(1, 1)
    costs = [float(per_sample_loss(*easy, loss)) for loss in (BceLoss(), FocalLoss())]
    costs.append(float(per_sample_loss(*easy, AsymmetricLoss())))
    assert costs[0] > 20 * costs[1] > 400 * costs[2] > 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "focal", "clip": 0.1}, r"unknown key 'loss.clip'"),
        ({"name": "bce", "gamma": 2.0}, r"unknown key 'loss.gamma'"),
        ({"name": "asymmetric", "gamma": 2.0}, r"unknown key 'loss.gamma'"),
        ({"name": "focal", "gamma": -1.0}, r"loss.gamma = -1.0"),
        ({"name": "asymmetric", "clip": 1.0}, r"loss.clip = 1.0"),
        ({"name": "focall"}, r"expected one of bce, focal, asymmetric, .*did you mean 'focal'"),
    ],
)
def test_constants_of_another_loss_are_refused(loss: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingOptions.parse({"loss": loss}, where="config.toml")
