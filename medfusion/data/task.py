"""The task: what all sites agree on. Nothing in it is learned from patients."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from medfusion.options import FileSchema, Options, read_toml

Kind = Literal["multilabel", "multiclass", "regression", "detection"]


class TaskInfo(Options):
    """Section ``[task]``: names of the task and of the two key columns."""

    name: str = Field(min_length=1)
    kind: Kind
    patient: str = "patient_id"
    study: str = "study_id"
    bins: int = Field(default=32, ge=2, le=1024)


class SplitRule(Options):
    """Section ``[split]``: a column that brings the split, else fractions of a patient hash."""

    column: str | None = None
    seed: int = 0
    calibration: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> Self:
        if self.calibration + self.test >= 1:
            raise ValueError("calibration + test must leave training patients (sum below 1)")
        return self


class ImageSpec(Options):
    """Section ``[image]``: the size and channels every image or volume is brought to.

    ``size`` is height and width in pixels or, with ``dims = 3``, voxels to the patient's right,
    to the front and upwards. Volumes may have a ``spacing`` in mm, at which they are cut around
    their centre (unset: the whole volume is brought to the size), and a ``window``, the public
    range of intensities that become black to white (unset: eight-bit values as they are, others
    by the volume's own percentiles). See `medfusion.data.volumes`.
    """

    column: str = "image"
    dims: Literal[2, 3] = 2
    size: tuple[int, int] | tuple[int, int, int] = (128, 128)
    channels: Literal[1, 3] = 1
    spacing: float | None = Field(default=None, gt=0)
    window: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _size_fits_the_networks(self) -> Self:
        if len(self.size) != self.dims:
            raise ValueError(f"size: expected {self.dims} sides, since dims = {self.dims}")
        if any(not 16 <= side <= 2048 for side in self.size):
            raise ValueError("size: expected sides of 16 to 2048 pixels")
        return self

    @model_validator(mode="after")
    def _volumes_have_one_channel(self) -> Self:
        if self.dims == 2:
            if self.spacing is not None or self.window is not None:
                raise ValueError("spacing and window are for volumes (dims = 3)")
        elif self.channels != 1:
            raise ValueError(f"channels = {self.channels}: expected 1 for volumes (dims = 3)")
        elif self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window: expected the lower end first")
        return self

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width, for what has no use for volumes."""
        assert len(self.size) == 2, "no volumes here"
        return self.size

    @model_serializer(mode="wrap")
    def _unset_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        return {key: value for key, value in data.items() if value is not None}


class BoxSpec(Options):
    """Section ``[boxes]``, of a task of detection: a study has at most ``most`` boxes.

    Every study is padded to that many, so the number is public and no patient's.
    """

    most: int = Field(default=16, ge=1, le=256)


class TextSpec(Options):
    """Section ``[text]``: the column of notes and the number of tokens kept."""

    column: str = "notes"
    max_tokens: int = Field(default=128, ge=4, le=4096)


class NumericFeature(Options):
    """A number with a public range, which clamps it, scales it and bins its histogram."""

    kind: Literal["numeric"]
    low: float
    high: float
    unit: str = ""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found low = {self.low}, high = {self.high}")
        return self


class BinaryFeature(Options):
    """A feature that is 0 or 1."""

    kind: Literal["binary"]


class CategoricalFeature(Options):
    """A feature with a public list of values."""

    kind: Literal["categorical"]
    values: tuple[str, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        if len(set(self.values)) != len(self.values):
            raise ValueError("values must differ from one another")
        return self


Feature = Annotated[
    NumericFeature | BinaryFeature | CategoricalFeature, Field(discriminator="kind")
]


class Labels(Options):
    """Section ``[labels]``: what a model tells, an output for each of ``names``.

    =============  =========================================================================
    kind of task   keys
    =============  =========================================================================
    multilabel     ``names`` are columns; cells hold 1, 0 or blank (unknown)
    multiclass     ``names`` are the classes; the cells of ``column`` hold one of them or blank
    regression     ``names`` is one column; its cells hold numbers from ``low`` to ``high``, in
                   ``unit``, or blank. The range is public: it scales the target, and bounds
                   what one patient adds to a released figure
    detection      ``names`` are what boxes are drawn around; columns of these names may say 1, 0
                   or blank (nobody looked) of a study, else its boxes do
    =============  =========================================================================

    ``prevalence`` is the share of patients with each label as the literature has it, never as
    the sites' own patients have it. A model starts from it (see `medfusion.models.priors`).
    """

    names: tuple[str, ...] = Field(min_length=1)
    column: str | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    prevalence: tuple[float, ...] | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of a regression's target."""
        assert self.low is not None, "only a regression has a range"
        assert self.high is not None, "only a regression has a range"
        return self.low, self.high

    @model_validator(mode="after")
    def _a_share_for_each_label(self) -> Self:
        if self.prevalence is None:
            return self
        if len(self.prevalence) != len(self.names):
            raise ValueError(
                f"prevalence: expected one share for each of the {len(self.names)} labels, found "
                f"{len(self.prevalence)}"
            )
        for name, share in zip(self.names, self.prevalence, strict=True):
            if not 0 < share < 1:
                raise ValueError(
                    f"prevalence of {name!r} = {share}: expected a share of patients above 0 and "
                    "below 1"
                )
        return self

    @model_serializer(mode="wrap")
    def _unset_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        for key in ("column", "low", "high", "unit", "prevalence"):
            if data.get(key) in (None, ""):  # as if there were no such key, also in the digest
                data.pop(key, None)
        return data

    def check(self, kind: Kind) -> None:
        """Raise `ValueError` unless the keys are those of a kind of task."""
        needed = {"multiclass": {"column"}, "regression": {"low", "high"}}.get(kind, set())
        free = {"regression": {"unit"}, "detection": set()}.get(kind, {"prevalence"})
        allowed = needed | free
        given = {
            key
            for key in ("column", "low", "high", "unit", "prevalence")
            if getattr(self, key) not in (None, "")
        }
        for key in sorted(given - allowed):
            raise ValueError(f"labels.{key}: not a key of a task of kind {kind!r}")
        for key in sorted(needed - given):
            raise ValueError(f"missing key 'labels.{key}', which a task of kind {kind!r} needs")
        if kind == "multiclass":
            self._check_classes()
        elif kind == "regression":
            low, high = self.range
            if len(self.names) != 1:
                raise ValueError(f"labels.names: expected one target, found {len(self.names)}")
            if not low < high:
                raise ValueError(f"labels: expected low < high, found low = {low}, high = {high}")

    def _check_classes(self) -> None:
        if len(set(self.names)) != len(self.names) or len(self.names) < 2:
            raise ValueError("labels.names: expected at least two classes, each once")
        if self.prevalence is not None and abs(sum(self.prevalence) - 1) > 1e-3:
            raise ValueError(
                f"labels.prevalence: classes exclude one another, so expected a sum of 1, found "
                f"{sum(self.prevalence):g}"
            )


@dataclass(frozen=True)
class Column:
    """One model-input column: a numeric or binary feature, or one value of a categorical."""

    feature: str
    value: str | None = None


class Task(Options):
    """The whole of ``task.toml``."""

    file_schema: FileSchema = 1
    task: TaskInfo
    split: SplitRule = SplitRule()
    image: ImageSpec | None = None
    text: TextSpec | None = None
    boxes: BoxSpec | None = None
    features: dict[str, Feature] = Field(default_factory=dict)
    labels: Labels

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Self:
        self.labels.check(self.task.kind)
        return self

    @model_validator(mode="after")
    def _columns_have_one_use(self) -> Self:
        used = [self.task.patient, self.task.study, *self.features, *self.label_columns]
        used += [part.column for part in (self.image, self.text) if part]
        used += [self.split.column] if self.split.column else []
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            raise ValueError(f"each column has one use, but these have two: {', '.join(twice)}")
        if not self.features and self.image is None and self.text is None:
            raise ValueError("expected at least one of [features.*], [image], [text]")
        return self

    @model_validator(mode="after")
    def _boxes_are_drawn_on_images(self) -> Self:
        if self.detects and (self.image is None or self.image.dims == 3):
            raise ValueError(
                "kind = 'detection' looks for boxes in images: expected [image] with dims = 2"
            )
        if self.boxes is not None and not self.detects:
            raise ValueError("[boxes] is for a task of kind 'detection'")
        return self

    @model_serializer(mode="wrap")
    def _no_boxes_are_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        if self.boxes is None:  # as if there were no such key, also in the task's digest
            data.pop("boxes", None)
        return data

    @property
    def detects(self) -> bool:
        """Whether the labels belong to boxes."""
        return self.task.kind == "detection"

    @property
    def most_boxes(self) -> int:
        """M, to which the boxes of a study are padded; 0 where the task has none."""
        return (self.boxes or BoxSpec()).most if self.detects else 0

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and validate a ``task.toml``; raises `ConfigError`."""
        return cls.parse(read_toml(path), where=str(path))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the task's content (not of the file's layout)."""
        # Not sorted: columns and histograms follow the order in which features are written.
        content = json.dumps(self.model_dump(mode="json"), separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Model-input columns in order: features as written, categorical values as listed."""
        return tuple(
            Column(name, value)
            for name, feature in self.features.items()
            for value in (feature.values if isinstance(feature, CategoricalFeature) else (None,))
        )

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The table columns that hold labels."""
        return self.labels.names if self.labels.column is None else (self.labels.column,)

    @property
    def label_cells(self) -> Feature:
        """What the cells of a label column hold."""
        if self.task.kind == "multiclass":
            return CategoricalFeature(kind="categorical", values=self.labels.names)
        if self.task.kind == "regression":
            low, high = self.labels.range
            return NumericFeature(kind="numeric", low=low, high=high, unit=self.labels.unit)
        return BinaryFeature(kind="binary")

    def cells_of(self, column: str) -> Feature | None:
        """Return what the cells of a feature's or a label's column hold; None for others."""
        return self.label_cells if column in self.label_columns else self.features.get(column)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that this task offers, out of image, tabular, text."""
        offered = {"image": self.image, "tabular": self.features, "text": self.text}
        return tuple(name for name, part in offered.items() if part)

    def differing_sections(self, other: "Task") -> str:
        """Name the sections in which two tasks differ, as ``[a], [b]``."""
        ours, theirs = self.to_json(), other.to_json()
        # As text: the order of features counts, and dicts of another order are equal.
        return ", ".join(
            f"[{key}]" for key in ours if json.dumps(ours[key]) != json.dumps(theirs[key])
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that `parse` turns into an equal task."""
        return self.model_dump(mode="json")
