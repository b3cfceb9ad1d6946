"""Checkpoints of a run: the model, what the strategy remembers, and the run's progress.

A checkpoint is one file that appears by an atomic rename, so a crash leaves either the last
whole one or a new whole one. Strategies keep arrays between rounds (momenta, second moments);
these are found by their type, so that every strategy of Flower resumes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors import safe_open
from safetensors.numpy import save_file

from medfusion.atomic_files import make_folder, replacing
from medfusion.errors import ConfigError

_PREFIX, _SUFFIX = "round-", ".safetensors"
_MODEL, _AVERAGE, _DOWN, _STRATEGY = "model/", "average/", "down/", "strategy/"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``round``.

    ``progress`` is the run loop's own JSON data; ``average`` is the running average of the
    models, None where there is none; ``down`` what `server.downlink` needs beside the model.
    """

    round: int
    arrays: ArrayRecord
    progress: dict[str, Any]
    average: ArrayRecord | None = None
    down: ArrayRecord | None = None


class CheckpointStore:
    """The checkpoints of one run, under ``folder``; ``fingerprint`` names the run's settings."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def save(self, checkpoint: Checkpoint, strategy: Strategy) -> None:
        """Write a checkpoint and drop all but the newest ones."""
        make_folder(self._folder)
        layout, arrays = _strategy_state(strategy)
        state = {
            "schema": 1,
            "fingerprint": self._fingerprint,
            "round": checkpoint.round,
            "strategy": layout,
            "progress": checkpoint.progress,
        }
        arrays |= {_MODEL + name: array for name, array in _numpy(checkpoint.arrays).items()}
        for prefix, record in ((_AVERAGE, checkpoint.average), (_DOWN, checkpoint.down)):
            if record is not None:
                arrays |= {prefix + name: array for name, array in _numpy(record).items()}
        target = self._folder / f"{_PREFIX}{checkpoint.round:06d}{_SUFFIX}"
        for left in self._folder.glob(f".{_PREFIX}*.partial"):
            left.unlink()  # by a run that was killed; they are as large as a checkpoint
        with replacing(target, durable=True) as partial:
            save_file(arrays, partial, metadata={"state": json.dumps(state)})
        for old in self._whole()[:-_KEPT]:
            old.unlink()

    def load(self, strategy: Strategy) -> Checkpoint | None:
        """Return the newest checkpoint and put its state into ``strategy``; None if there is none.

        Raises
        ------
        ConfigError
            If the folder holds a run of other settings.
        """
        whole = self._whole()
        if not whole:
            return None
        with safe_open(whole[-1], framework="numpy") as file:
            state = json.loads(file.metadata()["state"])
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
        if state["fingerprint"] != self._fingerprint:
            raise ConfigError(
                f"{self._folder.parent}: holds a run with other settings, sites or files "
                "(model.init, text encoder); expected the same ones to resume it, or another --out"
            )
        _restore(strategy, state["strategy"], arrays)
        model = _record(arrays, _MODEL)
        average, down = (_record(arrays, prefix) or None for prefix in (_AVERAGE, _DOWN))
        return Checkpoint(state["round"], model, state["progress"], average, down)

    def _whole(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*{_SUFFIX}"))


def _record(arrays: dict[str, np.ndarray[Any, Any]], prefix: str) -> ArrayRecord:
    names = sorted(name for name in arrays if name.startswith(prefix))
    return ArrayRecord({name.removeprefix(prefix): Array(arrays[name]) for name in names})


def _numpy(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    # order "C" and not ascontiguousarray, which gives arrays without dimensions one
    return {name: np.asarray(array.numpy(), order="C") for name, array in record.items()}


def _strategy_state(
    strategy: Strategy,
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Split the arrays that a strategy holds into their layout (JSON) and their content."""
    layout: dict[str, Any] = {}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for attribute, value in vars(strategy).items():
        if isinstance(value, ArrayRecord):
            kind, items = "record", _numpy(value)
        elif isinstance(value, dict) and _all_arrays(value.values()):
            kind, items = "dict", {str(name): item for name, item in value.items()}
        elif isinstance(value, list) and _all_arrays(value):
            kind, items = "list", {str(index): item for index, item in enumerate(value)}
        else:
            continue
        layout[attribute] = {"kind": kind, "names": list(items)}
        arrays |= {
            f"{_STRATEGY}{attribute}/{name}": np.asarray(item, order="C")
            for name, item in items.items()
        }
    return layout, arrays


def _all_arrays(values: Any) -> bool:
    values = list(values)
    # Arithmetic on an array without dimensions gives a scalar of numpy's.
    return bool(values) and all(isinstance(value, (np.ndarray, np.generic)) for value in values)


def _restore(
    strategy: Strategy, layout: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]
) -> None:
    for attribute, shape in layout.items():
        items = {name: arrays[f"{_STRATEGY}{attribute}/{name}"] for name in shape["names"]}
        value: Any = items
        if shape["kind"] == "record":
            value = ArrayRecord({name: Array(item) for name, item in items.items()})
        elif shape["kind"] == "list":
            value = list(items.values())
        setattr(strategy, attribute, value)
