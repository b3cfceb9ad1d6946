"""Section ``[model]`` of a config: the options of every model. Free of torch, so it stays fast."""

from typing import Literal

from pydantic import Field, field_validator

from medfusion.options import Options

Modality = Literal["image", "tabular", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "tabular", "text")


class TextOptions(Options):
    """Section ``[model.text]``.

    Attributes
    ----------
    encoder
        ``tiny`` (ships with us), a folder that ``save_pretrained`` wrote, or a hub id whose
        files are already on this machine.
    freeze
        Keep the encoder as it came; only the projection of its states is trained.
    """

    encoder: str = Field(default="tiny", min_length=1)
    freeze: bool = True


class MedFusionNetOptions(Options):
    """Every part of MedFusionNet that a run may choose; each switch serves an ablation.

    Attributes
    ----------
    modalities
        What the model reads; all that the task offers where it is not given.
    size
        ``tiny`` (32-64 px, CPU) or ``small`` (128 px).
    attention_stream
        The transformer stream beside the DenseNet stream.
    exchange
        Coupling of the two streams at every stage, both ways (idle without the stream).
    fpn
        Feature pyramid over stages 2-4; without it only the last stage is read.
    head
        ``queries`` (one query per label attends to each modality) or ``pooled`` (the means of
        each modality's tokens, concatenated, in a two-layer perceptron).
    label_attention
        Self-attention among the label queries (idle with the pooled head).
    modality_dropout
        Probability that training hides a modality of a study, independently of the others.
    """

    name: Literal["medfusion_net"] = "medfusion_net"
    modalities: tuple[Modality, ...] | None = None
    size: Literal["tiny", "small"] = "tiny"
    attention_stream: bool = True
    exchange: bool = True
    fpn: bool = True
    head: Literal["queries", "pooled"] = "queries"
    label_attention: bool = True
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    text: TextOptions = TextOptions()

    @field_validator("modalities")
    @classmethod
    def _in_fixed_order(cls, value: tuple[Modality, ...] | None) -> tuple[Modality, ...] | None:
        if value is None:
            return None
        if not value or len(set(value)) != len(value):
            raise ValueError("expected at least one of image, tabular, text, each once")
        return tuple(name for name in MODALITIES if name in value)


class LogisticOptions(Options):
    """The logistic model reads the tabular columns and has nothing to choose."""

    name: Literal["logistic"] = "logistic"

    @property
    def modalities(self) -> tuple[Literal["tabular"]]:
        """What the model reads."""
        return ("tabular",)

    @property
    def modality_dropout(self) -> float:
        """Zero: a model of one modality has none to hide."""
        return 0.0


ModelOptions = MedFusionNetOptions | LogisticOptions
