"""What tabular data do to the maps of an encoder, on their way through it.

Shapes: B batch, C channels, [...] two or three axes of space, l width of the embedding, K columns,
V values of a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medfusion.models.blocks.modulation import Gates, Modulation
from medfusion.models.blocks.spatialisation import PyramidFusion


@dataclass(frozen=True)
class Inside:
    """What happens to the maps of one batch; without any part, nothing.

    Attributes
    ----------
    tabular
        [B, K, V]; None where the encoder sees none.
    embedding
        [B, l] for generated layers; None without any.
    gates
        Multiply the channels of each stage's input.
    modulation
        Scales and shifts a map of the last stage.
    spread
        Fuses the columns, as a map, with the levels of a feature pyramid.
    """

    tabular: Tensor | None = None
    embedding: Tensor | None = None
    gates: Gates | None = None
    modulation: Modulation | None = None
    spread: PyramidFusion | None = None

    def factors(self) -> list[Tensor] | None:
        """Return the factors [B, C] of each stage's input; None without gates."""
        if self.gates is None:
            return None
        assert self.tabular is not None
        factors: list[Tensor] = self.gates(self.tabular)
        return factors

    def modulate(self, x: Tensor) -> Tensor:
        """Return the modulated map, or ``x`` itself."""
        if self.modulation is None:
            return x
        assert self.tabular is not None
        modulated: Tensor = self.modulation(x, self.tabular)
        return modulated

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the fused levels of a pyramid, or ``levels`` themselves."""
        if self.spread is None:
            return levels
        assert self.tabular is not None
        fused: list[Tensor] = self.spread(levels, self.tabular)
        return fused


def gated(x: Tensor, factors: Sequence[Tensor] | None, stage: int) -> Tensor:
    """Return a stage's input [B, C, ...] times its factors, or as it is without any."""
    if factors is None:
        return x
    own = factors[stage]
    return x * own.reshape(*own.shape, *[1] * (x.ndim - 2))
