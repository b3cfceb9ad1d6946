"""MedFusionNet: image, tabular and text tokens, gathered by one query per label.

- Image: a DenseNet stream and a transformer stream exchange at every stage; a feature pyramid
  over the exchanged maps, and the transformer's tokens, form the image tokens.
- Tabular: a token per column, with its threshold indicators and its missing flag.
- Text: a token per word piece, from a (frozen) language encoder.
- Each modality adds a learned token that says whether it is there.

Shapes: B batch, C channels, H height, W width, N image tokens, K columns, V values of a column
(3 + L), T text tokens, L labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfusion.models.blocks.heads import PooledHead, QueryHead
from medfusion.models.blocks.image_streams import ImageStreams, StreamSizes
from medfusion.models.blocks.tokens import Memory, StateToken, TabularTokens, TextTokens
from medfusion.models.contract import Model
from medfusion.models.options import MedFusionNetOptions
from medfusion.models.spec import FeatureAxis, InputSpec


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths and depths of the whole network."""

    streams: StreamSizes
    decoder_layers: int


SIZES = {
    "tiny": Sizes(
        streams=StreamSizes(
            stem=16, growth=16, bottleneck=32, layers=(1, 2, 2, 2), width=32, heads=2
        ),
        decoder_layers=1,
    ),
    "small": Sizes(
        streams=StreamSizes(
            stem=32, growth=16, bottleneck=64, layers=(3, 4, 6, 4), width=96, heads=6
        ),
        decoder_layers=1,
    ),
}


class ImageMemory(nn.Module):
    """Image to memory; the tokens of an absent image are masked."""

    def __init__(self, options: MedFusionNetOptions, spec: InputSpec, sizes: StreamSizes) -> None:
        super().__init__()
        self.streams = ImageStreams(
            spec.image_channels,
            spec.image_size,
            sizes,
            attention_stream=options.attention_stream,
            exchange=options.exchange,
            fpn=options.fpn,
        )
        self.state = StateToken(sizes.width)

    def forward(self, image_BCHW: Tensor, present_B: Tensor) -> Memory:
        """Return the memory of 1 + N tokens."""
        tokens_BND = self.streams(image_BCHW)
        keep_BN = torch.ones(tokens_BND.shape[:2], dtype=torch.bool, device=tokens_BND.device)
        memory: Memory = self.state(tokens_BND, keep_BN, present_B)
        return memory


class MedFusionNet(Model):
    """The network as `MedFusionNetOptions` describes it.

    Parameters
    ----------
    options
        Size and switches.
    spec
        Sizes of inputs and outputs.
    modalities
        What the model reads, out of image, tabular and text.
    """

    def __init__(
        self, options: MedFusionNetOptions, spec: InputSpec, modalities: tuple[str, ...]
    ) -> None:
        super().__init__(options, spec, modalities)
        sizes = SIZES[options.size]
        width, heads = sizes.streams.width, sizes.streams.heads
        if "image" in modalities:
            self.image = ImageMemory(options, spec, sizes.streams)
        if "tabular" in modalities:
            self.tabular = TabularTokens(spec.columns, spec.column_values, width)
        if "text" in modalities:
            # imported here, since transformers takes a second
            from medfusion.models.blocks.text_encoder import TextEncoder

            self.text_encoder = TextEncoder(options.text, spec.max_tokens)
            self.text = TextTokens(self.text_encoder.width, width)
        self.head: nn.Module
        if options.head == "queries":
            self.head = QueryHead(
                width,
                heads,
                labels=spec.labels,
                layers=sizes.decoder_layers,
                memories=len(modalities),
                label_attention=options.label_attention,
            )
        else:
            self.head = PooledHead(width, labels=spec.labels, memories=len(modalities))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits [B, L]."""
        memories: list[Memory] = []
        if "image" in self.modalities:
            memories.append(self.image(inputs["image"], inputs["image_present"]))
        if "tabular" in self.modalities:
            memories.append(self.tabular(inputs["tabular"]))
        if "text" in self.modalities:
            tokens_BT = inputs["tokens"]
            memories.append(self.text(self.text_encoder(tokens_BT), tokens_BT))
        logits_BL: Tensor = self.head(memories)
        return logits_BL

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the table of the columns' affine maps: a row each."""
        if "tabular" not in self.modalities:
            return {}
        return {"tabular.maps.weight": FeatureAxis(0, 1)}
