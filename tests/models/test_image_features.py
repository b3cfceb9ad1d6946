"""Features of an image that nothing trains: computed once, dropped when the image changes."""

from typing import cast

import numpy as np
import pytest
import torch

from medfusion.data.images import ImageCache
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.tensors import StudyTensors
from medfusion.models.blocks.wavelets import Wavelets
from medfusion.models.options import LogisticOptions, MedFusionNetOptions, ModelOptions
from medfusion.models.registry import build_model, fixed_image_features
from medfusion.objectives.multilabel import Multilabel
from medfusion.prediction import predict_logits
from medfusion.privacy.keystream import Keystream
from medfusion.training.augmentation import augment
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions

N = 70  # more than are computed at a time
CPU = torch.device("cpu")
TASK = Task.parse(
    {
        "task": {"name": "t", "kind": "multilabel"},
        "image": {"size": [32, 32], "channels": 1},
        "labels": {"names": ["ill", "dead"]},
    },
    where="test",
)
MODELS: list[ModelOptions] = [
    LogisticOptions(modalities=("image",)),
    MedFusionNetOptions(size="tiny"),
]


class FakeCache:
    def __init__(self) -> None:
        self.array = np.random.default_rng(0).integers(0, 256, (N, 1, 32, 32), dtype=np.uint8)

    def rows(self, paths, *, table_rows):
        return np.where(np.arange(len(paths)) % 5 == 2, -1, np.arange(len(paths)))


def studies(count: int) -> Studies:
    return Studies(
        study_ids=np.array([f"s{i}" for i in range(count)]),
        patient_ids=np.array([f"p{i}" for i in range(count)]),
        rows=np.arange(2, count + 2),
        features=np.zeros((count, 0)),
        labels=np.zeros((count, 2), np.float32),
        images=(None,) * count,
        notes=(None,) * count,
    )


def tensors_for(model, *, ahead: bool, count: int = N) -> StudyTensors:
    return StudyTensors.build(
        studies(count),
        TASK,
        selection=None,
        modalities=("image",),
        cache=cast(ImageCache, FakeCache()),
        image_features=fixed_image_features(model) if ahead else None,
    )


@pytest.mark.parametrize("options", MODELS)
def test_features_computed_ahead_give_the_same_predictions(options, monkeypatch):
    model = build_model(options, TASK, seed=0)
    torch.nn.init.normal_(model.linear.image.weight, std=0.1)
    live = predict_logits(model, tensors_for(model, ahead=False), CPU)
    ahead = tensors_for(model, ahead=True)
    monkeypatch.setattr(Wavelets, "forward", None)  # from here on, nothing computes them
    found = predict_logits(model, ahead, CPU, batch=3)
    np.testing.assert_allclose(found, live, atol=1e-5)
    assert np.ptp(live, axis=0).min() > 0.05


def test_a_site_without_studies():
    model = build_model(MODELS[0], TASK, seed=0)
    nobody, some = (tensors_for(model, ahead=True, count=count) for count in (0, 4))
    width = some.inputs(torch.arange(4))["image_features"].shape[1]
    assert nobody.inputs(torch.arange(0))["image_features"].shape == (0, width)


def test_models_without_a_linear_path_ask_for_none():
    plain = MedFusionNetOptions(size="tiny", linear_path=False)
    assert fixed_image_features(build_model(plain, TASK, seed=0)) is None


def test_an_augmented_image_brings_no_features_of_the_old_one():
    model = build_model(MODELS[0], TASK, seed=0)
    tensors = tensors_for(model, ahead=True)
    inputs = tensors.inputs(torch.arange(4))
    changed = augment(inputs, tensors.column_features, torch.Generator().manual_seed(0))
    assert "image_features" in inputs
    assert "image_features" not in changed


@pytest.mark.parametrize(("small_images", "kept"), [(0.0, True), (0.5, False)])
def test_a_halved_image_brings_no_features_of_the_whole_one(small_images, kept):
    model, seen = build_model(MODELS[0], TASK, seed=0), []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(set(arguments[0])))
    fit(
        model,
        tensors_for(model, ahead=True),
        options=TrainingOptions(small_images=small_images),
        objective=Multilabel(),
        plan=None,
        steps=1,
        public=torch.Generator().manual_seed(0),
        private=Keystream(bytes(32), "unused"),
        device=CPU,
        physical_batch=8,
    )
    assert [("image_features" in keys) for keys in seen] == [kept] * len(seen)
    assert seen
