"""MedFusionNet: image, tabular and text tokens, gathered by one query per label.

- Image: a DenseNet stream and a transformer stream exchange at every stage; a feature pyramid
  over the exchanged maps, and the transformer's tokens, form the image tokens.
- Tabular: a token per column, with its threshold indicators and its missing flag.
- Text: a token per word piece, from a (frozen) language encoder.
- Each modality adds a learned token that says whether it is there.
- Optional: gates, a head for each modality beside the fused one, label states, a linear path
  beside the network, columns that reach into the image streams (see `medfusion.models.options`).

Shapes: B batch, C channels, H height, W width, N image tokens, K columns, V values of a column
(3 + L), T text tokens, L labels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.models.blocks.gating import TokenGate
from medfusion.models.blocks.generated import Embedding, column_rows, generate
from medfusion.models.blocks.heads import PooledHead, QueryHead
from medfusion.models.blocks.image_streams import ImageStreams, StreamSizes
from medfusion.models.blocks.inside import Inside
from medfusion.models.blocks.linear_path import LinearPath
from medfusion.models.blocks.modulation import Gates, Modulation
from medfusion.models.blocks.spatialisation import PyramidFusion
from medfusion.models.blocks.tokens import Memory, StateToken, TabularTokens, TextTokens
from medfusion.models.blocks.unimodal import UnimodalLabels, UnimodalPooled
from medfusion.models.contract import FUSED, LABEL_STATES, Model
from medfusion.models.options import TRANSITIONS, MedFusionNetOptions
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
    # 7 M parameters as in DenseNet121, 5 M in the tokens, the exchange, the pyramid and the head
    "121": Sizes(
        streams=StreamSizes(
            stem=64,
            growth=32,
            bottleneck=128,
            layers=(6, 12, 24, 16),
            width=192,
            heads=6,
            as_torchvision=True,
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
            spec.plane,
            sizes,
            attention_stream=options.attention_stream,
            exchange=options.exchange,
            fpn=options.fpn,
            norm=options.image_norm,
            frozen_stages=options.frozen_stages,
        )
        self.state = StateToken(sizes.width)

    def forward(self, image_BCHW: Tensor, present_B: Tensor, inside: Inside) -> Memory:
        """Return the memory of 1 + N tokens; ``inside`` is what the columns do to the maps."""
        tokens_BND = self.streams(image_BCHW, inside)
        keep_BN = torch.ones(tokens_BND.shape[:2], dtype=torch.bool, device=tokens_BND.device)
        memory: Memory = self.state(tokens_BND, keep_BN, present_B)
        return replace(memory, log_share=functional.pad(self.streams.log_share, (1, 0)))


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
        width = sizes.streams.width
        if "image" in modalities:
            self.image = ImageMemory(options, spec, sizes.streams)
        if "tabular" in modalities:
            self.tabular = TabularTokens(spec.columns, spec.column_values, width)
        if "text" in modalities:
            # imported here, since transformers takes a second
            from medfusion.models.blocks.text_encoder import TextEncoder

            self.text_encoder = TextEncoder(options.text, spec.max_tokens)
            self.text = TextTokens(self.text_encoder.width, width, pooled=self.text_encoder.pooled)
        self.head = _make_head(options, sizes, spec.labels, modalities)
        self._build_fusion(options, spec, width)

    def _build_fusion(self, options: MedFusionNetOptions, spec: InputSpec, width: int) -> None:
        """Add what is optional in fusion: last, so that other initial values stay."""
        self._label_states = options.masked_labels > 0
        gated = self.modalities if options.gating == "token" else ()
        self.token_gates = nn.ModuleDict({name: TokenGate(width) for name in gated})
        # One modality's own head would be a second head of the whole.
        apart = options.auxiliary_heads > 0 and len(self.modalities) > 1
        alone = self.modalities if apart else ()
        kind = UnimodalLabels if options.head == "queries" else UnimodalPooled
        self.unimodal = nn.ModuleDict({name: kind(width, spec.labels) for name in alone})
        text_width = self.text_encoder.width if "text" in self.modalities else None
        linear = LinearPath(spec, self.modalities, text_width) if options.linear_path else None
        self.linear = linear
        self._build_inside(options, spec, width)

    def _build_inside(self, options: MedFusionNetOptions, spec: InputSpec, width: int) -> None:
        """Add what the columns do inside the image streams."""
        self._fusion = fusion = options.fusion
        self.clinical = None
        if fusion in ("film", "daft"):
            channels = self.image.streams.input_channels[-1]
            self.modulation = Modulation(spec, channels, sees_image=fusion == "daft")
        elif fusion == "interactive":
            self.gates = Gates(spec, self.image.streams.input_channels)
        elif fusion == "hyperfusion":
            self.embedding = Embedding(spec, options.embedding)
            generate(
                self.image.streams.transitions,
                options.generated_layers,
                embedding=options.embedding,
                rank=options.rank,
                prefix=TRANSITIONS,
            )
        if options.fusion_3d != "none":
            size = self.image.streams.finest
            self.clinical = PyramidFusion(
                spec.columns, spec.column_values, width, size, options.fusion_3d
            )

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits [B, L]."""
        return self.outputs(inputs)[FUSED]

    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits, and those of each modality's own head if there are such heads."""
        states_BPS = self.text_encoder.states_of(inputs) if "text" in self.modalities else None
        memories = self._memories(inputs, states_BPS)
        for number, name in enumerate(self.token_gates):
            memories[number] = self.token_gates[name](memories[number])
        told = [inputs.get(LABEL_STATES)] if self._label_states else []
        fused_BL, evidence = self.head(memories, *told)
        if self.linear is not None:
            fused_BL = fused_BL + self.linear(inputs, states_BPS)
        if not self.unimodal:
            return {FUSED: fused_BL}
        apart = {
            name: head(alone)
            for (name, head), alone in zip(self.unimodal.items(), evidence, strict=True)
        }
        return {FUSED: fused_BL, **apart}

    def _memories(self, inputs: dict[str, Tensor], states_BPS: Tensor | None) -> list[Memory]:
        """Return the memory of each modality; ``states_BPS`` are the states of the notes."""
        memories: list[Memory] = []
        if "image" in self.modalities:
            inside = self._inside(inputs)
            memories.append(self.image(inputs["image"], inputs["image_present"], inside))
        if "tabular" in self.modalities:
            memories.append(self.tabular(inputs["tabular"]))
        if "text" in self.modalities:
            assert states_BPS is not None
            memories.append(self.text(states_BPS, inputs["tokens"]))
        return memories

    def _inside(self, inputs: dict[str, Tensor]) -> Inside:
        """Return what the columns do inside the image streams."""
        tabular_BKV = inputs.get("tabular") if "tabular" in self.modalities else None
        return Inside(
            tabular_BKV,
            self.embedding(tabular_BKV) if self._fusion == "hyperfusion" else None,
            gates=self.gates if self._fusion == "interactive" else None,
            modulation=self.modulation if self._fusion in ("film", "daft") else None,
            spread=self.clinical,
        )

    def label_biases(self) -> list[nn.Parameter]:
        """Name the bias of every head."""
        heads: list[Any] = [self.head, *self.unimodal.values()]
        return [head.label_bias for head in heads]

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the tables of the columns' affine maps, a row each, and what is linear in them."""
        if "tabular" not in self.modalities:
            return {}
        rows = {"tabular.maps.weight": FeatureAxis(0, 1), **column_rows(self)}
        if self.clinical is not None:
            rows["clinical.tabular.tokens.maps.weight"] = FeatureAxis(0, 1)
        linear = {} if self.linear is None else self.linear.feature_rows("linear")
        return {**rows, **linear}


def _make_head(
    options: MedFusionNetOptions, sizes: Sizes, labels: int, modalities: tuple[str, ...]
) -> QueryHead | PooledHead:
    width = sizes.streams.width
    if options.head == "pooled":
        return PooledHead(width, labels=labels, memories=len(modalities))
    return QueryHead(
        width,
        sizes.streams.heads,
        labels=labels,
        layers=sizes.decoder_layers,
        modalities=modalities,
        label_attention=options.label_attention,
        label_states=options.masked_labels > 0,
    )
