import torch
from detection_studies import detection_task

from medfusion.objectives.options import DetectionLoss
from medfusion.objectives.registry import objective_of

TASK = detection_task()
PARTS = torch.tensor([[1.0, 10.0, 100.0, 1000.0], [2.0, 20.0, 200.0, 2000.0]])
LABELS = torch.zeros(2, 2)


def losses(known: torch.Tensor, loss: DetectionLoss | None = None) -> list[float]:
    return objective_of(TASK, loss).per_sample_loss(PARTS, LABELS, known).tolist()


def test_parts_are_added_with_their_weights():
    known = torch.ones(2, 2)
    assert losses(known) == [1111, 2222]
    weights = DetectionLoss(objectness=2, anchor_boxes=0, classes=1, boxes=0.5)
    assert losses(known, weights) == [602, 1204]


def test_a_mask_head_s_loss_has_its_weight():
    outputs, known = torch.cat([PARTS, PARTS[:, :1] * 1e4], dim=1), torch.ones(2, 2)
    for loss, expected in ((None, [11111, 22222]), (DetectionLoss(masks=0), [1111, 2222])):
        found = objective_of(TASK, loss).per_sample_loss(outputs, LABELS, known)
        assert found.tolist() == expected


def test_a_study_counts_where_every_label_was_looked_for():
    assert losses(torch.tensor([[1.0, 0.0], [1.0, 1.0]])) == [0, 2222]
