"""HyperFusion and its rivals: one encoder, one head, and eight ways to bring in tabular data.

===================  =======================================================================
``fusion``           what the tabular data do
===================  =======================================================================
``none``             nothing; the image alone
``tabular``          all; the image is not read
``concat``           join the head's hidden units in the last layer
``film``             scale and shift the channels of a map of the last stage
``daft``             as ``film``, but led by that map's means as well
``interactive``      multiply the channels of every stage's input
``hyperfusion``      generate part of the weights of the layers in ``generated``
``cross_attention``  ask: a query attends to the places of the last map
===================  =======================================================================

Shapes: B batch, C channels, [...] two or three axes of space, N places of the last map, L outputs,
K columns, V values of a column.
"""

import torch
from torch import Tensor, nn

from medfusion.models.blocks.attention import Attention
from medfusion.models.blocks.encoders import Encoder
from medfusion.models.blocks.generated import (
    Columns,
    Embedding,
    Generated,
    column_rows,
    generate,
    run,
)
from medfusion.models.blocks.inside import Inside
from medfusion.models.blocks.learned import LearnedTokens
from medfusion.models.blocks.modulation import Gates, Modulation
from medfusion.models.contract import Model
from medfusion.models.options import HyperFusionOptions
from medfusion.models.spec import FeatureAxis, InputSpec

_HIDDEN = 64  # of the head
_HEADS = 4


class HyperFusion(Model):
    """The network as `HyperFusionOptions` describes it."""

    def __init__(
        self, options: HyperFusionOptions, spec: InputSpec, modalities: tuple[str, ...]
    ) -> None:
        super().__init__(options, spec, modalities)
        self._fusion = options.fusion
        width = _HIDDEN
        if "image" in modalities:
            self.image = Encoder(
                options.backbone,
                len(spec.image_size),
                spec.image_channels,
                width=options.width,
                stages=options.stages,
            )
            width = self.image.channels
            self.absent = LearnedTokens(1, width, scale=0.1)
        self.head1, self.head2 = nn.Linear(width, _HIDDEN), nn.Linear(_HIDDEN, spec.labels)
        for layer in (self.head1, self.head2):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        # Last, so that the encoder and the head begin alike in every fusion.
        self._build_fusion(options, spec, width)

    def _build_fusion(self, options: HyperFusionOptions, spec: InputSpec, width: int) -> None:
        fusion = options.fusion
        if fusion == "tabular":
            self.columns = Columns(spec, width)
        elif fusion == "concat":
            self.columns = Columns(spec, spec.labels)
        elif fusion in ("film", "daft"):
            channels = self.image.modulated_channels
            self.modulation = Modulation(spec, channels, sees_image=fusion == "daft")
        elif fusion == "interactive":
            self.gates = Gates(spec, self.image.input_channels)
        elif fusion == "hyperfusion":
            self.embedding = Embedding(spec, options.embedding)
            generate(self, options.generated_layers, embedding=options.embedding, rank=options.rank)
        elif fusion == "cross_attention":
            self.query = Columns(spec, width)
            self.attention = Attention(width, _HEADS)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the outputs [B, L]."""
        tabular_BKV = inputs.get("tabular") if "tabular" in self.modalities else None
        embedding_Bl = self.embedding(tabular_BKV) if self._fusion == "hyperfusion" else None
        if "image" in self.modalities:
            pooled = self._pooled(inputs, tabular_BKV, embedding_Bl)
        else:
            pooled = torch.relu(self.columns(tabular_BKV))
        hidden = torch.relu(run(self.head1, pooled, embedding_Bl))
        found = run(self.head2, hidden, embedding_Bl)
        if self._fusion == "concat":
            found = found + self.columns(tabular_BKV)
        return found

    def _pooled(
        self, inputs: dict[str, Tensor], tabular_BKV: Tensor | None, embedding_Bl: Tensor | None
    ) -> Tensor:
        """Return the mean over the places of the last map [B, C], or what stands for no image."""
        inside = Inside(
            tabular_BKV,
            embedding_Bl,
            gates=self.gates if self._fusion == "interactive" else None,
            modulation=self.modulation if self._fusion in ("film", "daft") else None,
        )
        places_BNC = self.image(inputs["image"], inside).flatten(2).transpose(1, 2)
        present_B1 = inputs["image_present"].unsqueeze(1)
        pooled_BC: Tensor = places_BNC.mean(dim=1)
        pooled_BC = torch.where(present_B1, pooled_BC, self.absent(pooled_BC).squeeze(1))
        if self._fusion == "cross_attention":
            query_B1C = self.query(tabular_BKV).unsqueeze(1)
            told_BC = self.attention(query_B1C, places_BNC).squeeze(1)
            pooled_BC = pooled_BC + told_BC * present_B1
        return pooled_BC

    def label_biases(self) -> list[nn.Parameter]:
        """Name the bias of the head's last layer, beside which a part may be generated."""
        return [self._last.bias]

    def label_weights(self) -> list[nn.Parameter]:
        """Name the weights of that layer, and those of the columns that join in it."""
        beside = self.columns.parameters() if self._fusion == "concat" else ()
        return [self._last.weight, *beside]

    @property
    def _last(self) -> nn.Linear:
        """The head's last layer, without what may be generated beside it."""
        last = self.head2.base if isinstance(self.head2, Generated) else self.head2
        assert isinstance(last, nn.Linear)
        return last

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the weight of every layer that reads columns."""
        return column_rows(self)
