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

The head of a ResNet reads the mean over the places of the last map and has one hidden layer; that
of a VGG reads all places and has three, as in the paper's two networks (arXiv 2403.13319): where
volumes are aligned, the place of a finding tells.

Shapes: B batch, C channels, [...] two or three axes of space, N places of the last map, L outputs,
K columns, V values of a column.
"""

from itertools import pairwise
from math import prod

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
from medfusion.models.blocks.linear_path import LinearPath
from medfusion.models.blocks.modulation import Gates, Modulation
from medfusion.models.contract import Model
from medfusion.models.options import HyperFusionOptions
from medfusion.models.spec import FeatureAxis, InputSpec

_HIDDEN = {"resnet": (64,), "vgg": (16, 32, 64)}  # widths of the head's hidden layers
_ATTENTION_HEADS = 4


class HyperFusion(Model):
    """The network as `HyperFusionOptions` describes it."""

    def __init__(
        self, options: HyperFusionOptions, spec: InputSpec, modalities: tuple[str, ...]
    ) -> None:
        super().__init__(options, spec, modalities)
        self._fusion = options.fusion
        self._reads_places = options.backbone == "vgg"
        hidden = _HIDDEN[options.backbone]
        read = hidden[0]
        if "image" in modalities:
            self.image = Encoder(
                options.backbone,
                len(spec.image_size),
                spec.image_channels,
                width=options.width,
                stages=options.stages,
            )
            read = self.image.channels
            if self._reads_places:
                read *= prod(self.image.map_size(spec.image_size))
            self.absent = LearnedTokens(1, read, scale=0.1)
        linear = options.linear_path and "image" in modalities
        self.linear = LinearPath(spec, ("image",), None) if linear else None
        self._head = [f"head{number}" for number in range(1, len(hidden) + 2)]
        for name, (before, after) in zip(
            self._head, pairwise((read, *hidden, spec.labels)), strict=True
        ):
            layer = nn.Linear(before, after)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            self.add_module(name, layer)
        # Last, so that the encoder and the head begin alike in every fusion.
        self._build_fusion(options, spec, read)

    def _build_fusion(self, options: HyperFusionOptions, spec: InputSpec, read: int) -> None:
        """Add what the tabular data do; ``read`` is the number of values that the head reads."""
        fusion = options.fusion
        if fusion == "tabular":
            self.columns = Columns(spec, read)
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
            self.query = Columns(spec, self.image.channels)
            self.attention = Attention(self.image.channels, _ATTENTION_HEADS)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the outputs [B, L]."""
        tabular_BKV = inputs.get("tabular") if "tabular" in self.modalities else None
        embedding_Bl = self.embedding(tabular_BKV) if self._fusion == "hyperfusion" else None
        if "image" in self.modalities:
            found = self._read(inputs, tabular_BKV, embedding_Bl)
        else:
            found = torch.relu(self.columns(tabular_BKV))
        for name in self._head:
            if name != self._head[0]:
                found = torch.relu(found)
            found = run(self.get_submodule(name), found, embedding_Bl)
        if self._fusion == "concat":
            found = found + self.columns(tabular_BKV)
        return found if self.linear is None else found + self.linear(inputs, None)

    def _read(
        self, inputs: dict[str, Tensor], tabular_BKV: Tensor | None, embedding_Bl: Tensor | None
    ) -> Tensor:
        """Return what the head reads of the last map, or what stands for no image."""
        inside = Inside(
            tabular_BKV,
            embedding_Bl,
            gates=self.gates if self._fusion == "interactive" else None,
            modulation=self.modulation if self._fusion in ("film", "daft") else None,
        )
        places_BNC = self.image(inputs["image"], inside).flatten(2).transpose(1, 2)
        present_B1 = inputs["image_present"].unsqueeze(1)
        found: Tensor = places_BNC.flatten(1) if self._reads_places else places_BNC.mean(dim=1)
        found = torch.where(present_B1, found, self.absent(found).squeeze(1))
        if self._fusion == "cross_attention":
            query_B1C = self.query(tabular_BKV).unsqueeze(1)
            told_BC = self.attention(query_B1C, places_BNC).squeeze(1) * present_B1
            # The head adds what attention tells to every place that it reads.
            found = found + told_BC.repeat(1, found.shape[1] // told_BC.shape[1])
        return found

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
        last = self.get_submodule(self._head[-1])
        last = last.base if isinstance(last, Generated) else last
        assert isinstance(last, nn.Linear)
        return last

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the weight of every layer that reads columns."""
        return column_rows(self)
