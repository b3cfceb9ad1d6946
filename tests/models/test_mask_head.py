"""The mask head is torchvision's, and its truth is the drawn box, filled."""

import pytest
import torch
from detection_studies import draw_inputs
from test_detection_losses import ALL, SIDE, TASK, build, run, split, torchvision_parts
from torchvision.models.detection import roi_heads
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from medfusion.models.blocks.detection_targets import proposal_targets
from medfusion.models.blocks.mask_head import BINS, mask_targets
from medfusion.models.mdf_net import LOSSES

FINE = 8  # points a side of a cell


def filled(proposal: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """What share of a grid of points in each cell of a proposal lies in the drawn box."""
    side = 2 * BINS
    found = torch.zeros(side, side, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for down in range(FINE):
                for across in range(FINE):
                    x = (column + (across + 0.5) / FINE) / side
                    y = (row + (down + 0.5) / FINE) / side
                    x = float(proposal[0] + x * (proposal[2] - proposal[0]))
                    y = float(proposal[1] + y * (proposal[3] - proposal[1]))
                    inside = drawn[0] <= x < drawn[2] and drawn[1] <= y < drawn[3]
                    found[row, column] += float(inside) / FINE**2
    return found


def targets_of(proposals, drawn, classes, most: int):
    valid = torch.ones(proposals.shape[:2], dtype=torch.bool)
    targets = proposal_targets(proposals, valid, drawn, classes, drawn=64)
    return mask_targets(proposals, targets, drawn, most=most)


def test_the_truth_is_the_share_of_each_pixel_that_the_box_covers():
    drawn = torch.tensor([[[10.0, 12.0, 40.0, 50.0], [45.0, 5.0, 60.0, 20.0]]]).double()
    proposals = torch.tensor(
        [[[0.0, 0.0, 9.0, 9.0], [46.2, 4.1, 61.0, 21.0], [8.0, 15.0, 43.0, 52.0]]]
    ).double()
    found = targets_of(proposals, drawn, torch.tensor([[1, 2]]), most=3)
    # The positive ones first, in their order; then what is nothing.
    torch.testing.assert_close(found.proposals[0], proposals[0, [1, 2, 0]])
    assert found.classes.tolist() == [[2, 1, 0]]
    assert found.weights.tolist() == [[1, 1, 0]]
    for place, box in ((0, 1), (1, 0)):
        expected = filled(found.proposals[0, place], drawn[0, box])
        assert (found.truth[0, place] - expected).abs().max() < 1.5 / FINE
        assert 0 < expected.mean() < 1


def test_torchvision_reads_nearly_the_same_of_a_drawn_raster():
    draw = torch.Generator().manual_seed(0)
    drawn = torch.tensor([[[10.0, 12.0, 40.0, 50.0]]]).double()
    proposals = drawn + 4 * torch.randn(1, 12, 4, generator=draw).double()
    found = targets_of(proposals, drawn, torch.tensor([[1]]), most=12)
    raster = torch.zeros(1, SIDE, SIDE, dtype=torch.float64)
    raster[:, 12:50, 10:40] = 1.0
    index = torch.zeros(12, dtype=torch.int64)
    theirs = roi_heads.project_masks_on_boxes(raster, found.proposals[0], index, 2 * BINS)
    positive = found.weights[0] > 0
    assert positive.sum() == 11
    # Theirs are samples of a raster, half a pixel off at its edges.
    assert (theirs - found.truth[0])[positive].abs().mean() < 0.03
    assert (theirs - found.truth[0].mT)[positive].abs().mean() > 0.05


@pytest.mark.parametrize("fpn", [False, True])
def test_losses_agree_with_torchvision_s_mask_r_cnn(fpn, monkeypatch):
    for name in ("medfusion.models.mdf_net", "medfusion.models.blocks.detection_targets"):
        monkeypatch.setattr(f"{name}.ANCHORS_DRAWN", ALL)
    model, inputs = build(fpn=fpn, mask_head=True), draw_inputs(TASK, 3, seed=5)
    model.drawn = ALL
    rpn, roi = (part.train() for part in torchvision_parts(model))
    add_masks(roi, model)
    seen = []

    def covered(masks, boxes, matched, side):
        seen.append(len(boxes))
        found = torch.zeros(len(boxes), side, side, dtype=torch.float64)
        for place, number in enumerate(matched):
            found[place] = share(boxes[place], corners[number], side)
        return found

    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", covered)
    losses, *_ = split(model, inputs)
    assert losses.shape == (3, len(LOSSES))
    for study in range(3):
        corners = inputs["boxes"][study][inputs["box_classes"][study] > 0]
        _, theirs, _ = run(model, (rpn, roi), inputs, study, masks=True)
        if study == 0:  # nothing drawn
            assert losses[study, 4] == theirs["loss_mask"] == 0
            continue
        scale = int(0.25 * ALL) / seen[-1]
        torch.testing.assert_close(losses[study, 4] * scale, theirs["loss_mask"])
    assert len(seen) == 3
    assert sum(seen) > 3


def share(proposal, drawn, side: int) -> torch.Tensor:
    """The covered share of each cell, one axis at a time."""
    along = []
    for axis in (1, 0):
        near, far = float(proposal[axis]), float(proposal[axis + 2])
        step = (far - near) / side
        cells = [
            max(0.0, min(near + (i + 1) * step, float(drawn[axis + 2]))
                - max(near + i * step, float(drawn[axis]))) / step
            for i in range(side)
        ]  # fmt: skip
        along.append(torch.tensor(cells, dtype=torch.float64))
    return along[0][:, None] * along[1][None]


def add_masks(roi, model) -> None:
    """Give torchvision's second stage a mask branch with the weights of ``model``."""
    ours, names = model.mask_head, roi.box_roi_pool.featmap_names
    width = model.regions.hidden.in_channels
    roi.mask_roi_pool = MultiScaleRoIAlign(
        names, BINS, 2, canonical_scale=SIDE // 2, canonical_level=len(names)
    )
    roi.mask_head = MaskRCNNHeads(width, (width,) * 4, 1).double()
    roi.mask_predictor = MaskRCNNPredictor(width, width, 3).double()
    pairs = [
        *zip([layer[0] for layer in roi.mask_head], ours.convolutions, strict=True),
        (roi.mask_predictor.conv5_mask, ours.grow),
        (roi.mask_predictor.mask_fcn_logits, ours.classes),
    ]
    for theirs, layer in pairs:
        state = layer.state_dict()
        theirs.load_state_dict({"weight": state["weight"].squeeze(2), "bias": state["bias"]})


def test_other_losses_and_initial_values_are_those_without():
    inputs = draw_inputs(TASK, 2)
    plain, model = build(), build(mask_head=True)
    torch.testing.assert_close(model(inputs)[:, :4], plain(inputs), rtol=0.0, atol=0.0)
    assert (model(inputs)[1:, 4] > 0).all()
    assert torch.equal(model.eval()(inputs), plain.eval()(inputs))
