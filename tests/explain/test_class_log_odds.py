"""Where labels exclude one another, what is attributed is a class's log-odds, not its logit."""

import numpy as np
import pytest
import torch
from explained import CLASSES, random_inputs, random_model
from torch.nn import functional

from medfusion.data.task import Task
from medfusion.evaluation.multiclass_measures import log_odds
from medfusion.explain.grad_cam import grad_cam
from medfusion.explain.integrated_gradients import neutral_columns
from medfusion.explain.occlusion import occlusion
from medfusion.explain.scores import ScoresOf
from medfusion.explain.studies import explain_batch
from medfusion.models.options import HyperFusionOptions, LogisticOptions

OPTIONS = HyperFusionOptions(width=8, stages=2, fusion="concat")


def class_inputs() -> dict[str, torch.Tensor]:
    """Return inputs with an indicator for each of three classes."""
    inputs = random_inputs()
    return {**inputs, "tabular": functional.pad(inputs["tabular"], (0, 1))}


def test_scores_are_the_log_odds_of_the_softmax():
    model, inputs = random_model(OPTIONS, CLASSES), class_inputs()
    with torch.no_grad():
        scores = ScoresOf(model, inputs, "tabular", exclusive=True)
        found = scores(scores.changed, *scores.others)
        np.testing.assert_allclose(found.numpy(), log_odds(model(inputs).numpy()), rtol=1e-9)


def test_columns_add_up_to_the_change_of_the_log_odds():
    model = random_model(LogisticOptions(), CLASSES)
    inputs = class_inputs()
    features = torch.tensor([0, 1, 1, 1, 2])  # of each column
    found = explain_batch(model, inputs, CLASSES, features, physical_batch=8)
    with torch.no_grad():
        neutral = {**inputs, "tabular": neutral_columns(inputs["tabular"])}
        before, after = (log_odds(model(one).numpy()) for one in (neutral, inputs))
        raw = (model(inputs) - model(neutral)).numpy()
    assert np.abs(raw - (after - before)).max() > 0.01  # logits would not do
    np.testing.assert_allclose(found.features.sum(axis=-1), after - before, rtol=1e-4, atol=1e-5)


def test_hidden_windows_change_the_log_odds():
    model, inputs = random_model(OPTIONS, CLASSES), class_inputs()
    hidden = inputs["image"].clone()
    hidden[..., :4, :4] = inputs["image"].mean(dim=(2, 3), keepdim=True)
    with torch.no_grad():
        whole, without = (
            log_odds(model({**inputs, "image": one}).numpy()) for one in (inputs["image"], hidden)
        )
    found = occlusion(model, inputs, exclusive=True)[..., 0, 0].numpy()
    np.testing.assert_allclose(found, whole - without, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("label", [0, 2])
def test_grad_cam_follows_the_log_odds(label):
    """What lifts all classes alike speaks for none."""
    model, inputs = random_model(OPTIONS, CLASSES), class_inputs()
    (before,) = grad_cam(model, inputs, (label,), exclusive=True).values()
    with torch.no_grad():
        model.head2.weight.add_(torch.randn(1, model.head2.weight.shape[1]).double())
    (after,) = grad_cam(model, inputs, (label,), exclusive=True).values()
    torch.testing.assert_close(before, after)
    assert before.max() > 0


def test_tokens_are_of_the_log_odds():
    """Log-odds of two classes are opposites, whatever their logits."""
    data = {**CLASSES.to_json(), "labels": {"names": ["well", "icu"], "column": "outcome"}}
    two = Task.parse(data, where="test")
    model = random_model(LogisticOptions(modalities=("text",)), two)
    inputs = {"tokens": class_inputs()["tokens"]}
    tokens = explain_batch(model, inputs, two, torch.zeros(0), physical_batch=8).tokens
    np.testing.assert_allclose(tokens[:, 0], -tokens[:, 1], rtol=1e-6, atol=1e-9)
    assert np.abs(tokens).max() > 0
