import pytest
import torch

from medfusion.objectives.multilabel import mean_loss, per_sample_loss, probabilities

LOGITS = torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 0.5]])
LABELS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
KNOWN = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


def test_loss_is_cross_entropy_of_known_labels_over_all_labels() -> None:
    p = torch.sigmoid(LOGITS.double())
    y = LABELS.double()
    by_hand = -(y * p.log() + (1 - y) * (1 - p).log()) * KNOWN
    found = per_sample_loss(LOGITS, LABELS, KNOWN)
    assert found.tolist() == pytest.approx((by_hand.sum(1) / 3).tolist(), rel=1e-6)


def test_unknown_labels_have_no_gradient_and_samples_do_not_mix() -> None:
    logits = LOGITS.clone().requires_grad_()
    per_sample_loss(logits, LABELS, KNOWN)[0].backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert torch.all(logits.grad[0, :2] != 0)
    assert torch.all(logits.grad[1] == 0)


def test_sample_without_known_labels_costs_nothing() -> None:
    assert per_sample_loss(LOGITS, LABELS, torch.zeros(2, 3)).tolist() == [0.0, 0.0]


def test_mean_loss_is_the_mean_of_sample_losses() -> None:
    expected = per_sample_loss(LOGITS, LABELS, KNOWN).mean()
    assert float(mean_loss(LOGITS, LABELS, KNOWN)) == pytest.approx(float(expected), rel=1e-6)


def test_half_precision_logits_give_float32_losses() -> None:
    logits = LOGITS.bfloat16()
    assert per_sample_loss(logits, LABELS, KNOWN).dtype == torch.float32
    assert mean_loss(logits, LABELS, KNOWN).dtype == torch.float32
    assert probabilities(logits).dtype == torch.float32


def test_probabilities_of_logits() -> None:
    assert probabilities(torch.tensor([[0.0, 100.0]])).tolist() == [[0.5, 1.0]]
