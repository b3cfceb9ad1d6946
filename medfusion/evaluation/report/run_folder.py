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
from medfusion.evaluation.metrics import FloatArray
from medfusion.evaluation.score_histograms import consistent, score_sensitivity

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Run:
    """A run's results; a part that the folder lacks is None or empty.

    Attributes
    ----------
    summary, rounds, card
        ``summary.json``, the lines of ``rounds.jsonl``, ``model/model.json``.
    counts
        Score histograms summed over sites, without negative cells: [L, 2, S].
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
    labels, counts, noise = _sum_histograms(folder / "histograms.json", card)
    config = folder / "config.toml"
    return Run(
        summary=summary,
        rounds=_read_rounds(folder / "rounds.jsonl"),
        card=card,
        task=task,
        selection=selection,
        labels=labels or tuple(summary["auroc"]),
        counts=counts,
        noise=noise,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def _sum_histograms(
    path: Path, card: dict[str, Any]
) -> tuple[tuple[str, ...], FloatArray | None, float]:
    """Return the labels, the sum of the sites' histograms [L, 2, S], and its noise."""
    data = _read_json(path)
    if data is None or not data["sites"]:
        return (), None, 0.0
    labels = tuple(data["labels"])
    shape = (len(labels), 2, data["bins"])
    total = np.zeros(shape)
    for name in sorted(data["sites"]):
        histogram = np.array(data["sites"][name], dtype=np.float64)
        if histogram.shape != shape:
            raise DataError(
                f"{path}: sites.{name}: expected shape {shape}, found {histogram.shape}"
            )
        total += histogram
    plans = (card.get("privacy") or {}).get("sites") or {}
    multipliers = [plans[name]["metrics_noise"] or 0.0 for name in data["sites"] if name in plans]
    noise = score_sensitivity(len(labels)) * math.hypot(*multipliers)
    return labels, consistent(total, noise=noise), noise


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
