"""Two labels look alike and one of three clinical values tells them apart: it must come first."""

import numpy as np
import pytest
import torch
from planted_boxes import draw_squares, square_task
from torch.nn.functional import cross_entropy

from medfusion.data.encode import encode_tabular
from medfusion.data.task import Task
from medfusion.explain.cohort import contrast, importance
from medfusion.explain.detection import likeliest_boxes, scores_at, shapley_values
from medfusion.models.fusion import hide_columns
from medfusion.models.options import MdfNetOptions
from medfusion.models.registry import build_model

NUMBER = {"kind": "numeric", "low": -1, "high": 1}
FEATURES = {"noise": NUMBER, "sign": NUMBER, "more_noise": NUMBER}
TASK = Task.parse({**square_task().to_json(), "features": FEATURES}, where="test")
COLUMNS = torch.arange(3)


def studies(count: int, seed: int):
    """Return inputs, classes from 1, and labels [N, 2]."""
    squares = draw_squares(count, seed)
    draw = np.random.default_rng(seed)
    values = draw.uniform(-1, 1, (count, 3))
    values[:, 1] = squares.tensors["tabular"][:, 0, 0]
    inputs = {name: squares.tensors[name] for name in ("image", "image_present", "boxes")}
    inputs["tabular"] = torch.from_numpy(encode_tabular(values, TASK, None))
    return inputs, squares.tensors["box_classes"][:, 0], squares.labels.numpy()


@pytest.fixture(scope="module")
def model():
    """Only what reads the columns and what names the boxes learns: the boxes are given."""
    torch.set_num_threads(1)
    options = MdfNetOptions(proposals=8, fusion_3d="none", fusion_1d=True)
    model = build_model(options, TASK, seed=0)
    inputs, classes, _ = studies(96, seed=0)
    with torch.no_grad():
        maps = model.image(inputs["image"])
    learned = [*model.tabular.parameters(), *model.boxes.parameters()]
    optimizer = torch.optim.Adam(learned, lr=5e-3)
    for _ in range(40):
        encoded = model.fuse(maps, inputs)
        logits, _ = model.look_at(encoded, inputs["boxes"][:, :1])
        loss = cross_entropy(logits[:, 0], classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    return model.eval()


def test_the_planted_feature_comes_first_and_pushes_towards_the_truth(model):
    inputs, _, labels = studies(40, seed=1)
    values = shapley_values(model, inputs, COLUMNS).numpy()
    assert values.shape == (40, 2, 3)
    patients = np.arange(40)
    found = importance(values, patients, min_patients=10)
    others = [0, 2]
    assert (found.low[:, 1] > found.high[:, others].max(axis=1)).all()
    helps = contrast(values, labels, np.ones_like(labels), patients, min_patients=10)
    assert (helps.difference[:, 1] > helps.high[:, 1]).all()
    assert (helps.difference[:, [1]] > 5 * np.abs(helps.difference[:, others])).all()


def test_values_add_up_to_what_all_features_change(model):
    inputs, _, _ = studies(5, seed=2)
    encoded = model.encode(inputs)
    boxes = likeliest_boxes(model, encoded)
    nothing = hide_columns(inputs["tabular"], torch.ones(5, 3, dtype=torch.bool))
    without = scores_at(model, model.encode({**inputs, "tabular": nothing}), boxes)
    change = scores_at(model, encoded, boxes) - without
    torch.testing.assert_close(
        shapley_values(model, inputs, COLUMNS, orders=2).sum(-1), change, rtol=1e-4, atol=1e-5
    )


def test_where_there_is_no_image_nothing_is_found_whatever_the_features(model):
    inputs, _, _ = studies(3, seed=2)
    expected = shapley_values(model, inputs, COLUMNS, orders=2)
    inputs["image_present"] = torch.tensor([True, False, True])
    found = shapley_values(model, inputs, COLUMNS, orders=2)
    assert expected[1].abs().max() > 0
    assert found[1].abs().max() == 0
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_columns_of_one_feature_play_together(model):
    inputs, _, _ = studies(3, seed=3)
    together = shapley_values(model, inputs, torch.tensor([0, 1, 1]), orders=2)
    assert together.shape == (3, 2, 2)


def test_the_same_orders_each_time_and_the_stream_stays(model):
    inputs, _, _ = studies(3, seed=3)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = shapley_values(model, inputs, COLUMNS, orders=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, shapley_values(model, inputs, COLUMNS, orders=2))


def test_a_box_is_where_its_label_scores_highest(model):
    inputs, _, _ = studies(4, seed=4)
    encoded = model.encode(inputs)
    proposals, valid = model.propose(encoded)
    scores = model.look_at(encoded, proposals)[0].softmax(-1)[..., 1:]
    best = torch.where(valid[..., None], scores, 0.0).amax(dim=1)
    torch.testing.assert_close(scores_at(model, encoded, likeliest_boxes(model, encoded)), best)
