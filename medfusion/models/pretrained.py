"""``model.init``: initial weights from a file of this machine, never downloaded.

torchvision's DenseNet121 gives the convolutional stream its weights; another of our models gives
all that means the same in both.
"""

import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medfusion.data.task import Task
from medfusion.digests import file_sha256
from medfusion.errors import ConfigError, DataError
from medfusion.models.blocks.densenet121 import from_torchvision, is_torchvision
from medfusion.models.blocks.exchange import TokensToMap
from medfusion.models.contract import Model
from medfusion.models.initial_weights import InitialWeights
from medfusion.models.options import TRANSITIONS, MedFusionNetOptions
from medfusion.models.saved import SavedModel, load_model

_STREAMS = "image.streams."
_TRUNK = tuple(f"{_STREAMS}{part}." for part in ("stem", "stages", "transitions", "final"))
_OF_COLUMNS = ("modulation", "gates", "embedding", "clinical")  # they read columns alone
_GENERATORS = (".generator.weight", ".left.weight", ".bias.weight")  # `Generated`'s: so do they
_WEIGHTS, _CARD = "model.safetensors", "model.json"
_HOW_TO_GET = (
    "Where there are internet and torchvision, `python -c 'from torchvision.models import "
    "DenseNet121_Weights as W; W.DEFAULT.get_state_dict()'` puts densenet121-a639ec97.pth into "
    "torchvision's cache (MobileNet_V3_Small_Weights: mobilenet_v3_small-047dcff4.pth)"
)


@dataclass(frozen=True)
class _Source:
    """Tensors by our names, and which of our parameters they may stand for.

    ``convolutions_only``: they come from a network that had no tokens, and nothing but images.
    """

    tensors: Mapping[str, Tensor]
    fits: Callable[[str], bool]
    origin: InitialWeights
    convolutions_only: bool = False


def initialise(
    model: Model, options: MedFusionNetOptions, task: Task, *, frozen_only: bool = False
) -> None:
    """Give ``model`` the weights in ``options.init``, where names, shapes and meaning agree.

    All others keep their values; ``model.origin`` tells which, and ``model.initial_weights`` what
    the file is. The convolutional stream must agree as a whole. After torchvision's weights, which
    know no tokens, the exchange adds nothing to the maps until it is trained.

    Parameters
    ----------
    frozen_only
        Set only the frozen parameters, since the others will come from elsewhere.

    Raises
    ------
    ConfigError
        If the file is not there or not readable, or is of another network.
    """
    wanted = _wanted(model, frozen_only=frozen_only)
    if not wanted:
        return
    assert options.init is not None
    path = find_init(options.init)
    source = _read(path, options, task, model.modalities)
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    taken = {
        name: parameter
        for name, parameter in wanted.items()
        if source.fits(name) and shapes.get(name) == parameter.shape
    }
    _require_trunk(wanted, taken.keys(), options)
    if not taken and source.convolutions_only:
        return  # a model without images has no use for them
    if not taken:
        raise ConfigError(f"model.init = {options.init!r}: none of its weights fits this model")
    with torch.no_grad():
        for name, parameter in taken.items():
            parameter.copy_(source.tensors[name])
        if source.convolutions_only and not frozen_only:
            _silence_tokens(model)
    model.origin = _in_words(path, wanted, taken.keys())
    model.initial_weights = source.origin


def _silence_tokens(model: Model) -> None:
    """Let the exchange add nothing yet to maps that were learned without it."""
    for module in model.modules():
        if isinstance(module, TokensToMap):
            nn.init.zeros_(module.project.weight)
            nn.init.zeros_(module.project.bias)


def find_init(name: str) -> Path:
    """Return where initial weights lie: at that path, or under that name in torchvision's cache.

    A name without a folder is looked for in the cache only.

    Raises
    ------
    ConfigError
        If there is none, saying where it was looked for and how to get it.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    places = [cache / Path(name).name]
    if Path(name).name != name:
        places.insert(0, Path(name))
    found = next((place for place in places if place.exists()), None)
    if found is None:
        # no path of this machine in the message: a Node sends it to the coordinator
        looked = "there or in" if len(places) > 1 else "of that name in"
        raise ConfigError(
            f"model.init = {name!r}: no file {looked} torchvision's cache (hub/checkpoints in "
            f"TORCH_HOME). {_HOW_TO_GET}"
        )
    return found


def init_files(path: Path) -> tuple[Path, ...]:
    """Return the files that are read for initial weights at ``path``, the weights last.

    There are two of a model folder, and of the weights in one: its description comes along.
    """
    folder = path.parent if path.name == _WEIGHTS else path
    card = folder / _CARD
    return (card, folder / _WEIGHTS) if card.is_file() else (path,)


def _wanted(model: Model, *, frozen_only: bool) -> dict[str, nn.Parameter]:
    """Parameters that a file may set: all but a frozen text encoder's, which has its own files."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if (name.startswith("image.") if not parameter.requires_grad else not frozen_only)
    }


def _read(
    path: Path, options: MedFusionNetOptions, task: Task, modalities: tuple[str, ...]
) -> _Source:
    *described, weights = init_files(path)
    if described:
        return _of_saved_model(weights, options, task, modalities)
    assert options.init is not None
    state = load_tensors(path, options.init)
    if is_torchvision(state):
        channels = task.image.channels if task.image else 1
        ours = _translated(state, channels, options)
        origin = InitialWeights(kind="torchvision", sha256=file_sha256(path))
        return _Source(ours, lambda name: True, origin, convolutions_only=True)
    origin = InitialWeights(kind="tensors", sha256=file_sha256(path))
    # what is not of the images alone may mean other things
    return _Source(
        state, lambda name: name.startswith("image.") and not _is_generator(name), origin
    )


def _translated(
    state: Mapping[str, Tensor], channels: int, options: MedFusionNetOptions
) -> dict[str, Tensor]:
    try:
        found = from_torchvision(state, image_channels=channels, norm=options.image_norm)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"model.init = {options.init!r}: a damaged DenseNet: {error}") from None
    return {_STREAMS + name: tensor for name, tensor in found.items()}


def _of_saved_model(
    weights: Path,
    options: MedFusionNetOptions,
    task: Task,
    modalities: tuple[str, ...],
) -> _Source:
    try:
        saved = load_model(weights.parent, where=options.init)
        origin = InitialWeights.of_model(saved.card, file_sha256(weights))
    except (ConfigError, DataError) as error:
        raise ConfigError(f"model.init = {options.init!r}: {error}") from None
    return _Source(
        dict(saved.module.named_parameters()),
        lambda name: _means_the_same(name, saved, options, task, modalities),
        origin,
    )


def _is_generator(name: str) -> bool:
    """Whether a parameter makes weights of the image streams out of the columns."""
    return name.startswith(TRANSITIONS) and name.endswith(_GENERATORS)


def _means_the_same(
    name: str,
    saved: SavedModel,
    options: MedFusionNetOptions,
    task: Task,
    modalities: tuple[str, ...],
) -> bool:
    """Whether a parameter of the same name and shape stands for the same thing in two models."""
    part = name.partition(".")[0]
    if not isinstance(saved.options, MedFusionNetOptions):
        return False
    generator = _is_generator(name)
    if part == "image" and not generator:
        return True
    if part in ("text", "text_encoder"):
        return saved.options.text == options.text
    if saved.task.labels.names != task.labels.names:
        return False
    # order, ranges and units: they are what a column's values mean
    same_columns = list(saved.task.features.items()) == list(task.features.items())
    if generator or part in ("tabular", *_OF_COLUMNS):
        return same_columns
    if part == "linear":
        read = {
            "image": _shape(saved.task) == _shape(task),  # a feature's scale is in pixels
            "tabular": same_columns,
            "text": saved.options.text == options.text,
        }
        if not read[name.split(".")[1]]:
            return False
    return saved.module.modalities == modalities


def _shape(task: Task) -> tuple[tuple[int, ...], int] | None:
    return (task.image.size, task.image.channels) if task.image else None


def load_tensors(path: Path, init: str) -> dict[str, Tensor]:
    """Read a file of tensors, which ``init`` named, without running any code that it may hold.

    Raises
    ------
    ConfigError
        If it is no such file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError):
        state = None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(
            f"model.init = {init!r}: expected a state dict (.pth, .safetensors) or a model "
            "folder of a finished run"
        )
    return dict(state)


def _require_trunk(
    wanted: Mapping[str, nn.Parameter],
    taken: Collection[str],
    options: MedFusionNetOptions,
) -> None:
    """Refuse weights of another convolutional stream.

    Generators of other columns start afresh; they are never frozen.
    """
    trunk = [name for name in wanted if name.startswith(_TRUNK) and not _is_generator(name)]
    fitting = [name for name in trunk if name in taken]
    if len(fitting) < len(trunk):
        raise ConfigError(
            f"model.init = {options.init!r}: {len(fitting)} of {len(trunk)} tensors of the "
            f"convolutional stream fit size = {options.size!r} with norm = "
            f"{options.image_norm!r} and fusion = {options.fusion!r}; expected all of them, from a "
            "model of the same size, norm, generated layers and image channels, or, without "
            "generated layers, from torchvision's DenseNet121 with size = '121'"
        )


def _in_words(path: Path, wanted: Collection[str], taken: Collection[str]) -> str:
    """Say how much came from the file, and which parts did not."""
    text = f"{len(taken)} of {len(wanted)} weight tensors are from {path}"
    fresh = [name.split(".") for name in wanted if name not in taken]
    parts = {".".join(p[:-1][:3] if p[0] == "image" else p[:1]) for p in fresh}
    return f"{text}; drawn afresh: {', '.join(sorted(parts))}" if parts else text
