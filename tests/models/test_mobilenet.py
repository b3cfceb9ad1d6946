"""The detector's MobileNetV3-small is torchvision's, whose weights it takes."""

import pytest
import torch
from detection_studies import detection_task, draw_inputs
from torch import nn
from torchvision.models import MobileNetV3, densenet121, mobilenet_v3_small
from torchvision.transforms import Normalize

from medfusion.data.task import ImageSpec
from medfusion.errors import ConfigError
from medfusion.models.blocks.densenet import group_norm
from medfusion.models.blocks.mobilenet import MobileTrunk
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.local_files import local_files_sha256
from medfusion.models.options import MdfNetOptions
from medfusion.models.registry import build_model

TASK = detection_task(64)
LAYERS = (3, 8, 12)  # of 1/8, 1/16 and 1/32


@pytest.fixture(scope="module")
def reference() -> MobileNetV3:
    """Torchvision's network with norms away from where they start, as training leaves them."""
    torch.manual_seed(0)
    network = mobilenet_v3_small()
    draw = torch.Generator().manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=draw))
            for values in (part.bias.data, part.running_mean):
                values.copy_(0.2 * torch.randn(values.shape, generator=draw))
    return network.eval()


@pytest.fixture
def file(reference, tmp_path):
    path = tmp_path / "mobilenet.pth"
    torch.save(reference.state_dict(), path)
    return path


def taps(trunk: MobileTrunk, image: torch.Tensor) -> list[torch.Tensor]:
    """What the pyramid reads."""
    found = []
    handle = trunk.pyramid.register_forward_pre_hook(lambda _, inputs: found.extend(inputs[0]))
    with torch.no_grad():
        maps = trunk(image)
    handle.remove()
    assert [tuple(x.shape[-2:]) for x in maps] == list(trunk.grids)
    return found


def built(file, task=TASK, **options):
    options = {"backbone": "mobilenet_v3", "init": str(file), "fpn": True} | options
    return build_model(MdfNetOptions(**options), task, seed=0)


@pytest.mark.parametrize(("channels", "size"), [(1, (64, 96)), (3, (72, 64))])
def test_features_are_torchvisions(reference, file, channels, size):
    """Everywhere, also at the border, where the padding is no part of the image."""
    task = TASK.model_copy(update={"image": ImageSpec(size=size, channels=channels)})
    model = built(file, task)
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(
        (image.expand(-1, 3, -1, -1) + 1) / 2
    )
    found = taps(model.image, image)
    with torch.no_grad():
        for number, layer in enumerate(reference.features):
            x = layer(x)
            if number in LAYERS:
                ours = found[LAYERS.index(number)]
                torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4 * float(x.abs().max()))
    assert model.initial_weights.kind == "torchvision"


def test_norms_are_fixed_and_known_to_every_side(file):
    model, alone = built(file), built(file)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen
    assert all(name.rsplit(".", 1)[1] in ("scale", "shift") for name in frozen)
    assert not frozen & trainable_state(model).keys()
    assert frozen_sha256(model) == frozen_sha256(alone)
    follows = build_model(
        MdfNetOptions(backbone="mobilenet_v3", init=str(file), fpn=True),
        TASK,
        seed=1,
        weights_follow=True,
    )
    assert frozen_sha256(follows) == frozen_sha256(model)
    first = "image.features.1.block.0.0.weight"
    assert not torch.equal(trainable_state(follows)[first], trainable_state(model)[first])


def test_nothing_works_in_place_and_patients_do_not_mix():
    trunk = MobileTrunk(1, (64, 64), 32, norm=group_norm, pyramid=False)
    assert not [part for part in trunk.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not [part for part in trunk.modules() if getattr(part, "inplace", False)]
    assert (trunk.strides, trunk.grids) == ((32,), ((2, 2),))


def test_weights_of_another_network_are_refused(file, tmp_path):
    torch.save(densenet121().state_dict(), tmp_path / "dense.pth")
    with pytest.raises(ConfigError, match="weights of torchvision's mobilenet_v3_small"):
        built(tmp_path / "dense.pth")
    with pytest.raises(ConfigError, match="no file there or in torchvision's cache"):
        built(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="expected backbone = 'mobilenet_v3'"):
        MdfNetOptions.parse({"init": str(file)}, where="test")


def test_the_file_s_content_tells_runs_apart(file):
    options = MdfNetOptions(backbone="mobilenet_v3", init=str(file))
    before = local_files_sha256(options, TASK)
    state = torch.load(file, weights_only=True)
    state["features.0.0.weight"] += 1
    torch.save(state, file)
    assert before not in ("", local_files_sha256(options, TASK))


def test_a_detector_with_fixed_norms_learns(file):
    model = built(file, detections=5)
    inputs = draw_inputs(TASK, 3, dtype=torch.float32)
    model(inputs).sum().backward()
    for name, value in trainable_state(model).items():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
    assert model.eval()(inputs).isfinite().all()
