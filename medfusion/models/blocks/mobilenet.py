"""MobileNetV3-small (Howard et al. 2019, arXiv 1905.02244) as a detector's trunk.

The network is torchvision's. What would mix patients or break per-sample gradients is replaced:
BatchNorm by GroupNorm or by fixed constants, activations and sums in place by ones out of place.

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small
from torchvision.models.mobilenetv3 import InvertedResidual

from medfusion.models.blocks.densenet import Norm
from medfusion.models.blocks.fpn import FeaturePyramid
from medfusion.models.blocks.torchvision_weights import folded_norm, stem_weights, with_inside

_TAPS = {3: 8, 8: 16, 12: 32}  # layer -> pixels of the image for each of its map
_CHANNELS = {3: 24, 8: 48, 12: 576}
_EPSILON = 1e-3  # of this network's BatchNorm
_STEM = "features.0.0.weight"


class MobileTrunk(nn.Module):
    """The network's maps and what is read of them, as `DetectionTrunk`.

    Parameters
    ----------
    image_channels, image_size
        Channels, and height and width in pixels, of the images.
    width
        Of the maps that are given out.
    norm
        Makes the norm of so many channels.
    pyramid
        Read maps of 1/8, 1/16 and 1/32; else the last alone, as MDF-Net does.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: tuple[int, int],
        width: int,
        *,
        norm: Norm,
        pyramid: bool,
    ) -> None:
        super().__init__()
        network = mobilenet_v3_small(weights=None, norm_layer=norm, block=_Residual)
        self.features: nn.Sequential = network.features
        first = self.features[0]
        assert isinstance(first, nn.Sequential)
        first[0] = nn.Conv2d(image_channels + 1, 16, 3, 2, 1, bias=False)
        for layer in self.features.modules():
            if isinstance(layer, nn.ReLU | nn.Hardswish):
                layer.inplace = False
        self._taps = tuple(_TAPS) if pyramid else tuple(_TAPS)[-1:]
        self.pyramid = FeaturePyramid([_CHANNELS[tap] for tap in self._taps], width)
        self.strides = tuple(_TAPS[tap] for tap in self._taps)
        height, breadth = image_size
        self.grids = tuple((-(-height // s), -(-breadth // s)) for s in self.strides)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps, finest first: of ``grids`` places, each of ``strides`` pixels."""
        x_BCHW = with_inside(image_BCHW)
        taps = []
        for number, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW)
            if number in self._taps:
                taps.append(x_BCHW)
        maps: list[Tensor] = self.pyramid(taps)
        return maps


class _Residual(InvertedResidual):  # type: ignore[misc]  # torchvision has no types
    """Torchvision's block, whose sum does not overwrite what it adds to."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        found: Tensor = self.block(input)
        return input + found if self.use_res_connect else found


def from_torchvision(state: Mapping[str, Tensor], *, image_channels: int) -> dict[str, Tensor]:
    """Translate torchvision's weights to a `MobileTrunk` with fixed norms.

    Statistics and affine maps are folded into constants, computed in float64; with them our
    network gives torchvision's features. Images have 1 (grey) or 3 channels, in [-1, 1].

    Raises
    ------
    KeyError
        If a part of the network is missing.
    """
    found = {_STEM: stem_weights(state[_STEM], image_channels)}
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        if not part.startswith("features.") or name == _STEM:
            continue
        if f"{part}.running_mean" not in state:
            found[name] = value
        elif kind == "weight":
            found |= folded_norm(part, state, part, epsilon=_EPSILON)
    return found
