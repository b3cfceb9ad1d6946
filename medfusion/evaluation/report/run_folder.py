"""Reads what a finished run left in its folder."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfusion.data.task import Task
from medfusion.data.thresholds import Selection
from medfusion.errors import ConfigError, DataError
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.metrics import FloatArray
from medfusion.evaluation.multilabel_measures import MultilabelMeasures

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Run:
    """A run's results; a part that the folder lacks is None or empty.

    Attributes
    ----------
    summary, rounds, card
        ``summary.json``, the lines of ``rounds.jsonl``, ``model/model.json``.
    measures
        What the task is measured by.
    total
        What the sites released of their test patients, summed.
    counts
        The score histograms in it, without negative cells: [L, 2, S]; None for kinds of task
        that have none.
    noise
        Standard deviation of the noise in each cell of that sum.
    config
        Text of ``config.toml``.
    """

    summary: dict[str, Any]
    rounds: tuple[dict[str, Any], ...]
    card: dict[str, Any]
    task: Task | None
    selection: Selection | None
    labels: tuple[str, ...]
    measures: Measures
    total: FloatArray | None
    counts: FloatArray | None
    noise: float
    config: str

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
    labels = task.labels.names if task else tuple(summary["auroc"])
    measures = measures_of(task) if task else MultilabelMeasures(labels)
    total, noise = _sum_releases(folder / "histograms.json", card, measures)
    config = folder / "config.toml"
    return Run(
        summary=summary,
        rounds=_read_rounds(folder / "rounds.jsonl"),
        card=card,
        task=task,
        selection=selection,
        labels=labels,
        measures=measures,
        total=total,
        counts=None if total is None else measures.score_counts(total, noise=noise),
        noise=noise,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def _sum_releases(
    path: Path, card: dict[str, Any], measures: Measures
) -> tuple[FloatArray | None, float]:
    """Return the sum of what the sites released, and the noise in each of its cells."""
    data = _read_json(path)
    if data is None or not data["sites"]:
        return None, 0.0
    plans = (card.get("privacy") or {}).get("sites") or {}
    multipliers = [plans[name]["metrics_noise"] or 0.0 for name in data["sites"] if name in plans]
    shape = measures.release_shape(noised=bool(multipliers))
    total = np.zeros(shape)
    for name in sorted(data["sites"]):
        histogram = np.array(data["sites"][name], dtype=np.float64)
        if histogram.shape != shape:
            raise DataError(
                f"{path}: sites.{name}: expected shape {shape}, found {histogram.shape}"
            )
        total += histogram
    # Runs before subgroups did not write it.
    sensitivity = data.get("sensitivity", measures.sensitivity)
    return total, sensitivity * math.hypot(*multipliers)


def _read_rounds(path: Path) -> tuple[dict[str, Any], ...]:
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
