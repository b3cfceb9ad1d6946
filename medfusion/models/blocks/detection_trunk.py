"""From an image to the maps of a detector: densely connected stages and a feature pyramid.

Shapes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from medfusion.models.blocks.densenet import DenseStage, Stem, Transition
from medfusion.models.blocks.fpn import FeaturePyramid

_STAGES = 3
_LARGE = 256  # pixels of the shorter side from which on the stem divides by 4


@dataclass(frozen=True, kw_only=True)
class TrunkSizes:
    """Widths and depths; ``width`` is that of the maps."""

    stem: int
    growth: int
    bottleneck: int
    layers: tuple[int, int, int]
    width: int


class DetectionTrunk(nn.Module):
    """A DenseNet of three stages (GroupNorm, standardised weights) and what is read of it.

    The stem divides the image by 2 (by 4 from 256 pixels on), each stage but the first by 2:
    boxes need finer maps than labels of whole images do.

    Parameters
    ----------
    image_channels, image_size
        Channels, and height and width in pixels, of the images.
    pyramid
        Read all three stages; else the last one alone.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: tuple[int, int],
        sizes: TrunkSizes,
        *,
        pyramid: bool,
    ) -> None:
        super().__init__()
        stride = 4 if min(image_size) >= _LARGE else 2
        self.stem = Stem(image_channels, sizes.stem, stride)
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        entering = sizes.stem
        channels: list[int] = []
        for layers in sizes.layers:
            if channels:
                transition = Transition(channels[-1])
                self.transitions.append(transition)
                entering = transition.channels
            stage = DenseStage(
                entering, layers=layers, growth=sizes.growth, bottleneck=sizes.bottleneck
            )
            self.stages.append(stage)
            channels.append(stage.channels)
        self._taps = tuple(range(_STAGES)) if pyramid else (_STAGES - 1,)
        self.pyramid = FeaturePyramid([channels[tap] for tap in self._taps], sizes.width)
        self.strides = tuple(stride * 2**tap for tap in self._taps)
        height, width = image_size
        self.grids = tuple((-(-height // s), -(-width // s)) for s in self.strides)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps, finest first: of ``grids`` places, each of ``strides`` pixels."""
        x_BCHW = self.stem(image_BCHW)
        taps = []
        for number, stage in enumerate(self.stages):
            if number:
                x_BCHW = self.transitions[number - 1](x_BCHW)
            x_BCHW = stage(x_BCHW)
            if number in self._taps:
                taps.append(x_BCHW)
        maps: list[Tensor] = self.pyramid(taps)
        return maps
