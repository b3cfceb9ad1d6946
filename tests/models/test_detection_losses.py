"""Losses of the detector are those of torchvision's Faster R-CNN with the same weights."""

from collections import OrderedDict

import pytest
import torch
from detection_studies import detection_task, draw_inputs
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from medfusion.models.blocks.detection_targets import (
    ANCHORS_DRAWN,
    expected_weights,
    proposal_targets,
)
from medfusion.models.mdf_net import _SHARES, _SHARES_BY_LEVEL, BINS, MdfNet
from medfusion.models.options import MdfNetOptions
from medfusion.models.registry import build_model

SIDE, K = 64, 32
TASK = detection_task(SIDE)
ALL = 10**6  # torchvision draws every anchor, or every proposal


def build(**options) -> MdfNet:
    chosen = {"fusion_3d": "none", "fusion_1d": False, "proposals": K, **options}
    model = build_model(MdfNetOptions(**chosen), TASK, seed=0).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():  # larger weights than at the start, so that proposals differ
        for value in model.regions.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
    return model


def torchvision_parts(model: MdfNet, *, anchors_drawn: int = ALL, proposals_drawn: int = ALL):
    """Return torchvision's two stages with the weights of ``model``."""
    levels = _SHARES_BY_LEVEL if model._options.fpn else (_SHARES,)
    sizes = tuple(tuple(share * SIDE for share in level) for level in levels)
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    width = model.regions.hidden.in_channels
    head = RPNHead(width, generator.num_anchors_per_location()[0])
    both = dict.fromkeys(("training", "testing"))
    rpn = RegionProposalNetwork(
        generator, head, 0.7, 0.3, anchors_drawn, 0.5,
        both | dict.fromkeys(both, 1000), both | dict.fromkeys(both, K), 0.7,
    )  # fmt: skip
    names = [str(level) for level in range(len(sizes))]
    pool = MultiScaleRoIAlign(names, BINS, 2, canonical_scale=SIDE // 2, canonical_level=len(names))
    roi = RoIHeads(
        pool, TwoMLPHead(width * BINS**2, 2 * width), FastRCNNPredictor(2 * width, 3),
        0.5, 0.5, proposals_drawn, 0.25, None, 0.05, 0.3, 10,
    )  # fmt: skip
    pairs = {
        head.conv[0][0]: model.regions.hidden,
        head.cls_logits: model.regions.objectness,
        head.bbox_pred: model.regions.deltas,
        roi.box_head.fc6: model.boxes.first,
        roi.box_head.fc7: model.boxes.second,
        roi.box_predictor.cls_score: model.boxes.classes,
        roi.box_predictor.bbox_pred: model.boxes.deltas,
    }
    for theirs, ours in pairs.items():
        theirs.load_state_dict(ours.state_dict())
    return rpn.double(), roi.double()


def run(model: MdfNet, parts, inputs: dict[str, Tensor], study: int, *, masks: bool = False):
    """Return torchvision's proposals and losses, or detections, of one study.

    With ``masks`` it gets some, of the right size and number.
    """
    rpn, roi = parts
    maps = OrderedDict(
        (str(n), x) for n, x in enumerate(model.image(inputs["image"][study : study + 1]))
    )
    kept = inputs["box_classes"][study] > 0
    target = {
        "boxes": inputs["boxes"][study][kept],
        "labels": inputs["box_classes"][study][kept],
    }
    if masks:
        target["masks"] = torch.zeros(int(kept.sum()), SIDE, SIDE)
    images = ImageList(inputs["image"][study : study + 1], [(SIDE, SIDE)])
    targets = [target] if rpn.training else None
    proposals, first = rpn(images, maps, targets)
    found, second = roi(maps, proposals, [(SIDE, SIDE)], targets)
    return proposals[0], {**first, **second}, found


def split(model: MdfNet, inputs: dict[str, Tensor]):
    """Return our losses, and how many anchors and proposals count in each study's."""
    encoded = model.encode(inputs)
    lesson = model.lesson(encoded, inputs)
    counts = [(t.weights > 0).sum(dim=1) for t in (lesson.anchors, lesson.regions)]
    return model.losses(encoded, lesson), *counts


@pytest.mark.parametrize("fpn", [False, True])
def test_detections_and_proposals_agree(fpn):
    model, inputs = build(fpn=fpn).eval(), draw_inputs(TASK, 3)
    with torch.no_grad():
        model.boxes.deltas.weight.mul_(5)  # boxes that are moved
        parts = [part.eval() for part in torchvision_parts(model)]
        ours = model(inputs)
        proposals, valid = model.propose(model.encode(inputs))
        for study in range(3):
            theirs, _, (found,) = run(model, parts, inputs, study)
            torch.testing.assert_close(proposals[study][valid[study]], theirs)
            count = len(found["scores"])
            assert count > 3
            torch.testing.assert_close(ours[study, :count, :4], found["boxes"])
            torch.testing.assert_close(ours[study, :count, 4], found["scores"])
            assert ours[study, :count, 5].tolist() == found["labels"].tolist()
            assert not ours[study, count:].any()


@pytest.mark.parametrize("fpn", [False, True])
def test_losses_agree_where_every_anchor_and_proposal_is_drawn(fpn, monkeypatch):
    """Ours are divided by constants, theirs by how many there are: the sums agree."""
    for name in ("medfusion.models.mdf_net", "medfusion.models.blocks.detection_targets"):
        monkeypatch.setattr(f"{name}.ANCHORS_DRAWN", ALL)
    model, inputs = build(fpn=fpn), draw_inputs(TASK, 4, seed=5)
    model.drawn = ALL
    losses, anchors, proposals = split(model, inputs)
    parts = [part.train() for part in torchvision_parts(model)]
    for study in range(4):
        _, theirs, _ = run(model, parts, inputs, study)
        scale = [ALL / anchors[study]] * 2 + [ALL / proposals[study]] * 2
        expected = [
            theirs[name]
            for name in (
                "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"
            )
        ]  # fmt: skip
        torch.testing.assert_close(losses[study] * torch.stack(scale), torch.stack(expected))
    assert (losses[1:] > 0).all()
    assert losses[0, 1] == losses[0, 3] == 0  # nothing to move without a box


def test_losses_are_the_expectation_over_torchvision_s_draws():
    model, inputs = build(), draw_inputs(TASK, 2, seed=7)
    losses, *_ = split(model, inputs)
    parts = [
        part.train()
        for part in torchvision_parts(model, anchors_drawn=ANCHORS_DRAWN, proposals_drawn=K)
    ]
    torch.manual_seed(0)
    drawn = []
    with torch.no_grad():
        for _ in range(100):
            _, theirs, _ = run(model, parts, inputs, 1)
            drawn.append([theirs["loss_objectness"], theirs["loss_classifier"]])
    drawn = torch.tensor(drawn)
    error = drawn.std(dim=0) / len(drawn) ** 0.5
    assert (error > 0).all()
    assert ((losses[1, [0, 2]] - drawn.mean(dim=0)).abs() < 4 * error).all()


@pytest.mark.parametrize(("positives", "negatives"), [(0, 9), (2, 3), (5, 40), (20, 40), (9, 0)])
def test_weights_are_shares_of_what_is_drawn(positives, negatives):
    positive = torch.arange(70)[None] < positives
    negative = (torch.arange(70)[None] >= 30) & (torch.arange(70)[None] < 30 + negatives)
    weights = expected_weights(positive, negative, drawn=16, positive_share=0.5)
    chosen = min(positives, 8)
    assert weights[positive].sum() == pytest.approx(chosen)
    assert weights[negative].sum() == pytest.approx(min(negatives, 16 - chosen))
    assert weights[~positive & ~negative].sum() == 0
    assert weights.max() <= 1


def test_at_most_a_quarter_of_the_proposals_that_count_are_positive():
    box = torch.tensor([[[4.0, 4.0, 20.0, 20.0]]])
    proposals = torch.cat([box.expand(1, 20, 4), box.expand(1, 30, 4) + 30.0], dim=1)
    valid = torch.arange(50)[None] < 49
    targets = proposal_targets(proposals, valid, box, torch.tensor([[2]]), drawn=16)
    assert targets.classes[0].tolist() == [2] * 20 + [0] * 30
    assert targets.weights[0, :20].sum() == pytest.approx(4)
    assert targets.weights[0, 20:].sum() == pytest.approx(12)
    assert targets.weights[0, 49] == 0  # no proposal at all
    assert not targets.deltas.any()
