"""What ``frozen_stages`` keeps from training."""

import pytest
import torch
from initial_models import build, same, save, trained

from medfusion.models.contract import trainable_state
from medfusion.models.options import MedFusionNetOptions


@pytest.mark.parametrize("stages", range(5))
def test_frozen_stages_neither_train_nor_travel(stages, weights):
    model = build(init=str(weights), norm="group", frozen_stages=stages)
    streams = model.image.streams
    frozen = {name for name, value in streams.named_parameters() if not value.requires_grad}
    expected = {
        0: (),
        1: ("stem.", "stages.0."),
        2: ("stem.", "stages.0.", "stages.1.", "transitions.0."),
        3: ("stem.", "stages.0.", "stages.1.", "stages.2.", "transitions.0.", "transitions.1."),
        4: ("stem.", "stages.", "transitions.", "final."),
    }[stages]
    assert frozen == {n for n, _ in streams.named_parameters() if n.startswith(expected)}
    assert not any(f"image.streams.{name}" in trainable_state(model) for name in frozen)


def test_autograd_keeps_nothing_of_what_is_frozen(weights):
    model = build(init=str(weights), norm="group", frozen_stages=1)
    found = []
    streams = model.image.streams
    for stage in streams.stages[:2]:
        stage.register_forward_hook(lambda _part, _inputs, output: found.append(output))
    streams(torch.randn(2, 1, 32, 32))
    assert [output.requires_grad for output in found] == [False, True]


def test_small_sizes_freeze_too(tmp_path):
    options = MedFusionNetOptions()
    first = trained(options)
    folder = str(save(tmp_path / "model", first, options))
    model = build(size="tiny", init=folder, frozen_stages=4, seed=1)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[2] for name in frozen} == {"stem", "stages", "transitions"}
    assert same(model, first, "image.streams.stages") == {True}
