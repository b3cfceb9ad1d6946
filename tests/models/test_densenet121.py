"""Size 121 against torchvision's DenseNet121, whose weights it takes."""

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet, densenet121
from torchvision.transforms import Normalize

from medfusion.models.blocks.densenet121 import FixedNorm, from_torchvision
from medfusion.models.blocks.image_streams import ImageStreams
from medfusion.models.medfusion_net import SIZES

STREAMS = SIZES["121"].streams


def shaken(network: nn.Module) -> nn.Module:
    """Move norms away from where they start, as training does."""
    draw = torch.Generator().manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=draw))
            for values in (part.bias.data, part.running_mean):
                values.copy_(0.2 * torch.randn(values.shape, generator=draw))
    return network.eval()


@pytest.fixture(scope="module")
def reference() -> DenseNet:
    torch.manual_seed(0)
    return shaken(densenet121())


def streams(channels: int, size: tuple[int, int], norm="batch", **options) -> ImageStreams:
    parts = {"attention_stream": False, "exchange": False, "fpn": True} | options
    return ImageStreams(channels, size, STREAMS, norm=norm, **parts)


def taps(network: ImageStreams, image: torch.Tensor) -> list[torch.Tensor]:
    """What the pyramid reads."""
    found = []
    handle = network.pyramid.register_forward_pre_hook(lambda _, inputs: found.extend(inputs[0]))
    with torch.no_grad():
        network(image)
    handle.remove()
    return found


def torchvision_taps(network: DenseNet, image: torch.Tensor) -> list[torch.Tensor]:
    """Normed and rectified maps of stages 2 to 4, of an image in [-1, 1]."""
    colours = (image.expand(-1, 3, -1, -1) + 1) / 2
    x = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(colours)
    found = []
    with torch.no_grad():
        for name, part in network.features.named_children():
            if name in ("transition2", "transition3"):
                found.append(torch.relu(part.norm(x)))
            x = part(x)
        return [*found, torch.relu(x)]


@pytest.mark.parametrize(("channels", "size"), [(1, (64, 96)), (3, (64, 64))])
def test_features_are_torchvisions(reference, channels, size):
    """Everywhere, also at the border, where the padding is no part of the image."""
    network = streams(channels, size)
    weights = from_torchvision(reference.state_dict(), image_channels=channels, norm="batch")
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {"pyramid", "places", "norm"}
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for ours, theirs in zip(taps(network, image), torchvision_taps(reference, image), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))


def test_the_published_spelling_of_names_is_read(reference):
    state = reference.state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): value
        for name, value in state.items()
        if "num_batches_tracked" not in name
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    first = from_torchvision(state, image_channels=1, norm="batch")
    second = from_torchvision(old, image_channels=1, norm="batch")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_group_norm_starts_with_the_affine_maps_of_batch_norm(reference):
    weights = from_torchvision(reference.state_dict(), image_channels=1, norm="group")
    network = streams(1, (32, 32), norm="group")
    assert network.load_state_dict(weights, strict=False).unexpected_keys == []
    norm = network.stages[1][3].norm2
    assert isinstance(norm, nn.GroupNorm)
    theirs = reference.features.denseblock2.denselayer4.norm2
    assert torch.equal(norm.weight, theirs.weight)
    assert torch.equal(norm.bias, theirs.bias)


def test_fixed_norms_are_not_trained_and_keep_the_type_of_their_input():
    norm = FixedNorm(3)
    assert not any(value.requires_grad for value in norm.parameters())
    for dtype in (torch.float32, torch.bfloat16):
        assert norm(torch.randn(1, 3, 2, 2, dtype=dtype)).dtype == dtype
    plain, fixed = (
        sum(isinstance(part, kind) for part in streams(1, (32, 32), norm=name).modules())
        for name, kind in (("group", nn.GroupNorm), ("batch", FixedNorm))
    )
    assert plain == fixed == 2 * (6 + 12 + 24 + 16) + 3 + 2


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (224, 224)])
def test_tokens_at_any_size(size):
    network = streams(1, size, norm="group", attention_stream=True, exchange=True)
    sides = [[-(-side // stride) for side in size] for stride in (8, 16, 32)]
    levels = sum(min(high, 8) * min(wide, 8) for high, wide in sides)
    with torch.no_grad():
        tokens = network(torch.randn(1, 1, *size))
    grid = [min(max(-(-side // 4) // 4, 2), 8) for side in size]
    assert tokens.shape == (1, levels + grid[0] * grid[1], STREAMS.width)


def test_size_121_has_densenet121s_parameters():
    trunk = sum(
        value.numel()
        for name, value in streams(1, (64, 64), norm="group").named_parameters()
        if name.startswith(("stem", "stages", "transitions", "final"))
    )
    theirs = sum(value.numel() for value in densenet121().features.parameters())
    assert trunk == theirs - 64 * 49  # two input channels instead of three
