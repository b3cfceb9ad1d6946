"""A model on disk: ``model.safetensors`` (trainable weights) beside ``model.json``.

How its scores are read is in ``calibration.json``, if anything was fitted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medfusion.atomic_files import make_folder, replacing, write_json
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection
from medfusion.errors import ConfigError, DataError
from medfusion.evaluation.calibration import Calibration
from medfusion.models.contract import Model, frozen_sha256, trainable_state
from medfusion.models.options import ModelOptions
from medfusion.models.registry import build_model

PERSONAL = "personal"  # folder, beside a hospital's copy of the common model, of its own one

OWN_PARTS = "own_parts"  # key of a card: "initial" where parts that sites keep were never trained

_SCHEMA = 1  # of model.json
_CALIBRATION = "calibration.json"

_OPTIONS: TypeAdapter[ModelOptions] = TypeAdapter(
    Annotated[ModelOptions, Field(discriminator="name")]
)


@dataclass(frozen=True)
class SavedModel:
    """A model that can be used: network with weights, task, and how features were selected.

    ``calibration`` says how its scores are read; None if nothing was fitted.
    """

    module: Model
    options: ModelOptions
    task: Task
    selection: Selection | None
    selection_method: Literal["federated", "local", "none"]
    top_n: int
    card: dict[str, Any]
    calibration: Calibration | None = None


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    card: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write weights, card and calibration; each file appears whole or not at all, for good."""
    make_folder(folder)
    # Never beside the weights of another model.
    (folder / _CALIBRATION).unlink(missing_ok=True)
    with (  # both are written before either is moved, the weights first
        replacing(folder / "model.json", durable=True) as text,
        replacing(folder / "model.safetensors", durable=True) as weights,
    ):
        save_file({name: state[name].contiguous() for name in sorted(state)}, weights)
        text.write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if calibration is not None:
        write_json(folder / _CALIBRATION, calibration.model_dump(mode="json"), durable=True)


def load_model(folder: Path, *, where: str | None = None) -> SavedModel:
    """Read a model folder; frozen weights come from their own files, on this machine.

    ``where`` heads the messages on failure; the folder, where it is not given.

    Raises
    ------
    DataError
        If a file is missing or damaged, or the weights are not this model's.
    ConfigError
        If the text encoder or the file in ``model.init`` is needed and not here, or parts of the
        model are each hospital's own.
    """
    where = where or str(folder)
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if (schema := card.get("schema", _SCHEMA)) != _SCHEMA:
            raise ValueError(f"model.json has schema {schema!r}, expected {_SCHEMA}")
        state = load_file(folder / "model.safetensors")
        task = Task.parse(card["task"], where=f"{where}/model.json")
        options = _OPTIONS.validate_python(card["model"])
        chosen = card["selection"]
        selection = Selection.from_json(chosen, task) if chosen else None
        method, top_n, seed = card["selection_method"], card["top_n"], card["seed"]
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise DataError(f"{where}: no {name}; expected a model folder of a finished run") from None
    except (
        SafetensorError,
        ValidationError,
        ValueError,
        KeyError,
        AttributeError,
        ConfigError,
    ) as error:
        raise DataError(f"{where}: not a model that this version can read: {error}") from None
    if card.get(OWN_PARTS) == "initial":
        raise ConfigError(
            f"{where}: the run let each hospital keep a part of the model (personalisation.local), "
            "which is untrained here; expected the model delivered to a hospital, in its state "
            "folder under models/"
        )
    module = build_model(options, task, seed=seed, weights_follow=True)
    shapes = {name: tuple(p.shape) for name, p in trainable_state(module).items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise DataError(f"{where}: the weights are not those of the model in model.json")
    if "frozen_sha256" in card and card["frozen_sha256"] != frozen_sha256(module):
        raise DataError(
            f"{where}: the frozen weights on this machine (text encoder, model.init) are not "
            "those that the model was trained with: install the same files"
        )
    module.load_state_dict(state, strict=False)
    module.eval()
    calibration = _read_calibration(folder / _CALIBRATION, task, where=where)
    return SavedModel(module, options, task, selection, method, top_n, card, calibration)


def check_calibration(calibration: Calibration, task: Task) -> None:
    """Raise `ValueError` if a calibration is of other labels than a task's."""
    if tuple(calibration.labels) != task.labels.names:
        raise ValueError("its labels are not the task's")
    if calibration.exclusive != (task.task.kind == "multiclass"):
        raise ValueError("it is of another kind of task")


def _read_calibration(path: Path, task: Task, *, where: str) -> Calibration | None:
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        calibration = Calibration.parse(data, where=path.name)
        check_calibration(calibration, task)
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(
            f"{where}: {path.name} is not one that this version can read: {error}; without the "
            "file the model is used uncalibrated"
        ) from None
    return calibration
