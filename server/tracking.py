"""Figures of a run for TensorBoard and MLflow, as its rounds end, in ``RUN/tracking``.

Nothing goes there that ``rounds.jsonl`` and ``summary.json`` do not hold. Both are written anew by
whoever starts or resumes the run, from the rounds so far.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from medfusion.config import Tracker
from medfusion.errors import ConfigError

_FOLDER = "tracking"
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}


class Writer(Protocol):
    """Where figures go."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of one round."""
        ...

    def close(self) -> None:
        """Say that the run has ended."""
        ...


class Tracking:
    """What `write_rounds` is for people, for the trackers of ``[run] tracking``.

    Parameters
    ----------
    names
        Which trackers.
    folder
        The run folder.
    run
        The run's name.
    warn
        Told of a tracker that failed: it gets nothing more, and the run goes on.
    """

    def __init__(
        self, names: Sequence[Tracker], folder: Path, run: str, warn: Callable[[str], None]
    ) -> None:
        self._written = 0
        self._warn = warn
        self._writers: list[Writer] = []
        for name in names:
            place = folder / _FOLDER / name
            shutil.rmtree(place, ignore_errors=True)
            try:
                self._writers.append(_WRITERS[name](place, run))
            except Exception as error:  # as in _each
                warn(f"run.tracking: {name} failed and is left out: {error}")

    def rounds(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write those of the rounds so far that are new."""
        for line in lines[self._written :]:
            self._each(partial(_write, step=line["round"], figures=round_figures(line)))
        self._written = len(lines)

    def finish(self, summary: Path) -> None:
        """Write what ``summary.json`` holds, beside the last round, and close."""
        figures = summary_figures(json.loads(summary.read_text(encoding="utf-8")))
        self._each(partial(_write, step=self._written, figures=figures))
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in list(self._writers):
            try:
                call(writer)
            except Exception as error:  # whatever a tracker raises must not stop a run
                self._writers.remove(writer)
                self._warn(f"run.tracking: {type(writer).__name__} failed and is left out: {error}")


def _write(writer: Writer, step: int, figures: Mapping[str, float]) -> None:
    writer.write(step, figures)


def require_trackers(names: Sequence[Tracker]) -> None:
    """Raise `ConfigError` if the package of a tracker is not installed."""
    from importlib.util import find_spec

    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"run.tracking = {name!r}: the package {_PACKAGES[name]} is not installed here: "
                'pip install "medfusion[tracking]"'
            )


def round_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a line of ``rounds.jsonl``, by name; what is undefined is left out."""
    sites = line["sites"]
    found = _numbers("metrics", line["metrics"] or {})
    found |= {key: line[key] for key in ("update_norm", "seconds", "bytes_up", "bytes_down")}
    found |= {f"seconds_of/{name}": site["seconds"] for name, site in sites.items()}
    return found | {"sites_ok": sum(site["status"] == "ok" for site in sites.values())}


def summary_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a whole run, and what each hospital's privacy cost."""
    quality = {k: v for k, v in summary.items() if k not in ("schema", "seed", "sites", "rounds")}
    found = _numbers("summary", quality)
    for name, site in summary["sites"].items():
        found |= _numbers(f"site/{name}", site)
    return found


def _numbers(prefix: str, told: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in told.items():
        if isinstance(value, Mapping):
            found |= _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{key}"] = float(value)
    return found


class _TensorBoard:
    """Event files; ``tensorboard --logdir RUN/tracking/tensorboard`` shows them."""

    def __init__(self, place: Path, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(place / run))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    """A store of files, as ``mlflow ui --backend-store-uri RUN/tracking/mlflow`` reads it.

    MLflow wants to be told that files will do; it is also told to report nothing home.
    """

    def __init__(self, place: Path, run: str) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        (place / ".trash").mkdir(parents=True)  # a store that this process knew lost its folders
        self._client = MlflowClient(tracking_uri=place.resolve().as_uri())
        experiment = self._client.create_experiment("medfusion")
        self._run = self._client.create_run(experiment, run_name=run).info.run_id

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            allowed = re.sub(r"[^\w/. :-]", "_", name)
            self._client.log_metric(self._run, allowed, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


_WRITERS: dict[str, Callable[[Path, str], Writer]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
}
