"""The models by name. Adding one: its module, its options in `options.py`, a line in `MODELS`.

Importing this file loads no torch; a model's module is imported when it is built.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.options import (
    HyperFusionOptions,
    LogisticOptions,
    MdfNetOptions,
    MedFusionNetOptions,
    ModelOptions,
)
from medfusion.models.spec import input_spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medfusion.data.note_states import NoteEncoder
    from medfusion.data.tensors import ImageFeatures
    from medfusion.models.contract import Model

    Tokenizer = Callable[[Sequence[str | None]], NDArray[np.int64]]


@dataclass(frozen=True)
class Entry:
    """A registered model: its options, and the module and class that build it."""

    options: type[ModelOptions]
    module: str
    class_name: str


MODELS: dict[str, Entry] = {
    "medfusion_net": Entry(MedFusionNetOptions, "medfusion.models.medfusion_net", "MedFusionNet"),
    "mdf_net": Entry(MdfNetOptions, "medfusion.models.mdf_net", "MdfNet"),
    "logistic": Entry(LogisticOptions, "medfusion.models.logistic", "Logistic"),
    "hyperfusion": Entry(HyperFusionOptions, "medfusion.models.hyperfusion", "HyperFusion"),
}


def modalities_of(options: ModelOptions, task: Task) -> tuple[str, ...]:
    """Return the modalities that the model will read, in the order image, tabular, text.

    Raises
    ------
    ConfigError
        If the options ask for a modality that the task does not offer.
    """
    chosen = task.modalities if options.modalities is None else options.modalities
    asked = tuple(name for name in chosen if name in options.reads)
    absent = [name for name in asked if name not in task.modalities]
    if absent:
        raise ConfigError(
            f"model {options.name!r} reads {', '.join(absent)}, but task {task.task.name!r} "
            f"offers only {', '.join(task.modalities)}; choose other modalities or extend the task"
        )
    return asked


def build_model(
    options: ModelOptions, task: Task, *, seed: int, weights_follow: bool = False
) -> "Model":
    """Build a model with its initial weights.

    Parameters
    ----------
    options
        Section ``[model]`` of the run.
    task
        The task, which fixes the sizes of inputs and outputs.
    seed
        Public seed of the initial weights: the same seed gives the same weights, and the global
        random number generator is left as it was.
    weights_follow
        The caller will load the trainable weights, so the file in ``init`` is read only where
        it holds frozen ones.

    Raises
    ------
    ConfigError
        If the model is not for this kind of task, the task lacks a modality that the options
        ask for, has volumes that the model cannot read or no labels that ``masked_labels`` could
        tell, a fusion was chosen for which there is nothing to fuse, or the text encoder or the
        file in ``init`` cannot be used.
    """
    from medfusion.models.seeding import seeded

    _check_kind(options, task)
    modalities = modalities_of(options, task)
    if options.masked_labels and task.task.kind != "multilabel":
        raise ConfigError(
            f"model.masked_labels = {options.masked_labels}: a task of kind {task.task.kind!r} has "
            "no labels that tell of one another; expected 0"
        )
    solid = "image" in modalities and task.image is not None and task.image.dims == 3
    if solid and not isinstance(options, HyperFusionOptions | LogisticOptions):
        raise ConfigError(
            f"model.name = {options.name!r} reads images of two dimensions, those of task "
            f"{task.task.name!r} have three; expected 'hyperfusion', 'logistic', or modalities "
            "without 'image'"
        )
    if not weights_follow:  # a model that was trained so is read all the same
        _check_fusion(options, modalities)
    entry = MODELS[options.name]
    model_class: type[Model] = getattr(import_module(entry.module), entry.class_name)
    with seeded(seed):
        model = model_class(options, input_spec(task), modalities)
    if task.labels.prevalence is not None:
        from medfusion.models.priors import start_from_prevalence

        exclusive = task.task.kind == "multiclass"
        start_from_prevalence(model, task.labels.prevalence, exclusive=exclusive)
    if isinstance(options, MedFusionNetOptions) and options.init is not None:
        from medfusion.models.pretrained import initialise

        initialise(model, options, task, frozen_only=weights_follow)
    elif isinstance(options, MdfNetOptions) and options.init is not None:
        from medfusion.models.pretrained_detector import initialise_detector

        initialise_detector(model, options, task, frozen_only=weights_follow)
    return model


def _check_kind(options: ModelOptions, task: Task) -> None:
    """Refuse a detector for a task of another kind, and the other way round."""
    if isinstance(options, MdfNetOptions) != task.detects:
        expected = "mdf_net" if task.detects else "one that gives labels to whole studies"
        raise ConfigError(
            f"model.name = {options.name!r}: expected {expected} for a task of kind "
            f"{task.task.kind!r}"
        )


def _check_fusion(options: ModelOptions, modalities: tuple[str, ...]) -> None:
    """Refuse a fusion of columns with an image where either is not read."""
    absent = [name for name in ("image", "tabular") if name not in modalities]
    if absent and (keys := options.fuses_columns):
        key = keys[0]
        raise ConfigError(
            f"model.{key} = {getattr(options, key)!r} fuses tabular columns with an image, but "
            f"this model reads {' and '.join(modalities)} alone; expected a task and modalities "
            f"with {' and '.join(absent)}, or the usual model.{key}"
        )


def build_tokenizer(options: ModelOptions, task: Task) -> "Tokenizer | None":
    """Return the tokenizer that fits the model's text encoder; None if it reads no text."""
    if isinstance(options, HyperFusionOptions) or "text" not in modalities_of(options, task):
        return None
    from medfusion.models.blocks.text_encoder import tokenizer

    return tokenizer(options.text, input_spec(task).max_tokens)


def fixed_image_features(model: "Model") -> "ImageFeatures | None":
    """Return what computes the image's fixed features that the model reads; None without."""
    features = getattr(getattr(model, "linear", None), "features", None)
    return None if features is None else features.in_advance


def frozen_note_encoder(model: "Model") -> "NoteEncoder | None":
    """Return the model's text encoder if nothing trains it; else, and without text, None."""
    encoder = getattr(model, "text_encoder", None)
    return encoder if encoder is not None and encoder.frozen else None
