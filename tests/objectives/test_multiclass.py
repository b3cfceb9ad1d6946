"""Cross-entropy of classes, against its formula."""

import pytest
import torch

from medfusion.objectives.multiclass import Multiclass
from medfusion.objectives.options import CrossEntropyLoss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [900.0, -900.0, 0.0]])
CLASSES = torch.tensor([2, 0, 1])
LABELS = torch.nn.functional.one_hot(CLASSES, 3).float()
KNOWN = torch.ones(3, 3)


def test_a_loss_is_minus_the_log_of_the_true_classs_probability():
    found = Multiclass(CrossEntropyLoss()).per_sample_loss(LOGITS, LABELS, KNOWN)
    told = zip(LOGITS.double(), CLASSES, strict=True)
    expected = [-float(row.log_softmax(0)[c]) for row, c in told]
    assert found.tolist() == pytest.approx(expected)
    assert found.dtype == torch.float32


def test_weights_multiply_and_do_not_change_the_denominator():
    plain = Multiclass(CrossEntropyLoss()).per_sample_loss(LOGITS, LABELS, KNOWN)
    weighted = Multiclass(CrossEntropyLoss(class_weights=(3.0, 0.5, 2.0)))
    found = weighted.per_sample_loss(LOGITS, LABELS, KNOWN)
    assert (found / plain).tolist() == pytest.approx([2.0, 3.0, 0.5])
    assert float(weighted.mean_loss(LOGITS, LABELS, KNOWN)) == pytest.approx(float(found.mean()))


def test_an_unknown_class_costs_nothing_and_pulls_nowhere():
    logits = LOGITS.clone().requires_grad_()
    known = KNOWN.clone()
    known[1] = 0
    losses = Multiclass(CrossEntropyLoss()).per_sample_loss(logits, LABELS * known, known)
    losses.sum().backward()
    assert losses.detach()[1] == 0.0
    assert not logits.grad[1].any()
    assert logits.grad[0].any()
