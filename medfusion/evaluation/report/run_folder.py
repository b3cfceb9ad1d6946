"""Reads what a finished run left in its folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from medfusion.data.task import Task
from medfusion.data.thresholds import Selection
from medfusion.errors import ConfigError, DataError
from medfusion.evaluation.calibration import Calibration
from medfusion.evaluation.detection_measures import DetectionMeasures
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.measures import Headline, Measures
from medfusion.evaluation.metrics import FloatArray
from medfusion.evaluation.multilabel_measures import MultilabelMeasures

SCHEMA = 1
_HASHED = (
    "config.toml",
    "model/model.json",
    "model/model.safetensors",
    "model/calibration.json",
)


@dataclass(frozen=True, eq=False)
class Run:
    """A run's results; a part that the folder lacks is None or empty.

    Attributes
    ----------
    summary, rounds, card
        ``summary.json``, the lines of ``rounds.jsonl``, ``model/model.json``.
    measures
        What the task is measured by.
    releases
        What each site released of its test patients, and the standard deviation of the noise
        in each cell of it, by the site's name.
    total
        The releases, summed.
    counts
        The score histograms in it, without negative cells: [L, 2, S]; None for kinds of task
        that have none.
    noise
        Standard deviation of the noise in each cell of that sum.
    calibration
        ``model/calibration.json``.
    config
        Text of ``config.toml``.
    hashes
        SHA-256 of the files that others need to have the same, by path.
    """

    folder: Path

    summary: dict[str, Any]
    rounds: tuple[dict[str, Any], ...]
    card: dict[str, Any]
    task: Task | None
    selection: Selection | None
    labels: tuple[str, ...]
    measures: Measures
    releases: Mapping[str, tuple[FloatArray, float]]
    total: FloatArray | None
    counts: FloatArray | None
    noise: float
    calibration: Calibration | None
    config: str
    hashes: Mapping[str, str]

    @property
    def headline(self) -> Headline:
        """The headline figure of the task's measures.

        Under privacy a detector's boxes are not measured, only what they say of studies.
        """
        first = self.measures.headline
        unmeasured = self.summary.get(first.key) is None
        boxes = isinstance(self.measures, DetectionMeasures)
        return Measures.headline if boxes and unmeasured else first

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the sites that took part in some round; all where no rounds are told."""
        took_part = {
            name
            for line in self.rounds
            for name, part in line["sites"].items()
            if part["status"] == "ok"
        }
        return tuple(name for name in self.summary["sites"] if name in took_part or not self.rounds)

    @property
    def name(self) -> str:
        """Name of the run, else of its task."""
        return str(self.card.get("run") or (self.task.task.name if self.task else "run"))

    @property
    def privacy(self) -> dict[str, Any]:
        """The privacy part of the model card."""
        return dict(self.card.get("privacy") or {})


def read_run(folder: Path, *, summary: dict[str, Any] | None = None) -> Run:
    """Read a run folder; only ``summary.json`` must be there, unless ``summary`` is given.

    Raises
    ------
    DataError
        If the folder is not a finished run's, or a file is damaged or of another schema.
    """
    summary = summary or _read_json(folder / "summary.json")
    if summary is None:
        raise DataError(f"{folder}: no summary.json; expected the folder of a finished run")
    card = _read_json(folder / "model" / "model.json") or {}
    try:
        task = Task.parse(card["task"], where="task") if "task" in card else None
        chosen = card.get("selection")
        selection = Selection.from_json(chosen, task) if chosen and task else None
    except ConfigError as error:
        raise DataError(f"{folder / 'model' / 'model.json'}: {error}") from None
    labels = task.labels.names if task else tuple(summary.get("auroc", ()))
    measures = measures_of(task) if task else MultilabelMeasures(labels)
    releases = _read_releases(folder / "histograms.json", card, measures)
    total = np.sum([one for one, _ in releases.values()], axis=0) if releases else None
    noise = math.hypot(*(noise for _, noise in releases.values()))
    config = folder / "config.toml"
    return Run(
        folder=folder,
        summary=summary,
        rounds=read_rounds(folder / "rounds.jsonl"),
        card=card,
        task=task,
        selection=selection,
        labels=labels,
        measures=measures,
        releases=releases,
        total=total,
        counts=None if total is None else measures.score_counts(total, noise=noise),
        noise=noise,
        calibration=_read_calibration(folder / "model" / "calibration.json"),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        hashes={
            name: sha256((folder / name).read_bytes()).hexdigest()
            for name in _HASHED
            if (folder / name).is_file()
        },
    )


def _read_releases(
    path: Path, card: dict[str, Any], measures: Measures
) -> dict[str, tuple[FloatArray, float]]:
    """Return what each site released, and the noise in each of its cells, by name."""
    data = _read_json(path)
    if data is None or not data["sites"]:
        return {}
    plans = (card.get("privacy") or {}).get("sites") or {}
    multipliers = {
        name: plans[name]["metrics_noise"] or 0.0 for name in data["sites"] if name in plans
    }
    shape = measures.release_shape(noised=bool(multipliers))
    # Runs before subgroups did not write it.
    sensitivity = float(data.get("sensitivity", measures.sensitivity))
    found = {}
    for name in sorted(data["sites"]):
        histogram = np.array(data["sites"][name], dtype=np.float64)
        if histogram.shape != shape:
            raise DataError(
                f"{path}: sites.{name}: expected shape {shape}, found {histogram.shape}"
            )
        found[name] = (histogram, sensitivity * multipliers.get(name, 0.0))
    return found


def _read_calibration(path: Path) -> Calibration | None:
    found = _read_json(path)
    try:
        return None if found is None else Calibration.parse(found, where=str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def read_rounds(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the lines of ``rounds.jsonl``; none where the file is not there yet.

    Raises
    ------
    DataError
        If a line is damaged or of another schema.
    """
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(_parse(line, f"{path}: line {n}") for n, line in enumerate(lines, 1) if line)


def _read_json(path: Path) -> dict[str, Any] | None:
    return _parse(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise DataError(f"{where}: expected schema = {SCHEMA}, found {found!r}")
    assert isinstance(data, dict)
    return data
