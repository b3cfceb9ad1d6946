"""FLamby's Fed-Heart-Disease: its data as it prepares them, its local training, its tables.

Source: Ogier du Terrail et al., *FLamby*, NeurIPS 2022. Columns slope, ca and thal and rows with
gaps are left out; chest pain and resting ECG become indicators, each without its first category,
which makes 13 inputs; each centre is brought to mean 0 and deviation 1 by its own training part.
The pooled data are scaled by the training patients of all centres, so that a patient's inputs
differ between the pooled test and a centre's. Unlike the product, which uses public ranges, all
that learns from patients: this is a reproduction.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.cohorts.fed_heart import SITES, published_test_part

Floats = NDArray[np.float64]
BATCH, ROUNDS, STEPS, EPOCHS, ADAM_RATE = 4, 15, 100, 50, 1e-3
SEEDS = range(42, 47)
_CHEST_PAIN, _ECG = 2, 6
_CATEGORIES = {_CHEST_PAIN: (2, 3, 4), _ECG: (1, 2)}


@dataclass(frozen=True, eq=False)
class Part:
    """Patients: inputs [N, 14], of which the last is 1 (once scaled), and outcomes [N]."""

    x: Floats
    y: Floats


@dataclass(frozen=True, eq=False)
class Centre:
    """A hospital's training and test part."""

    train: Part
    test: Part


def read_centres(folder: Path) -> tuple[dict[str, Centre], Centre]:
    """Return the four centres in FLamby's order, each scaled by itself; and all as one."""
    raw = {name: _read(folder / f"processed.{name}.data") for name in SITES}
    everyone = Centre(
        pooled([centre.train for centre in raw.values()]),
        pooled([centre.test for centre in raw.values()]),
    )
    return {name: _scaled(centre) for name, centre in raw.items()}, _scaled(everyone)


def pooled(parts: list[Part]) -> Part:
    """Return the patients of several parts as one."""
    return Part(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


def _scaled(centre: Centre) -> Centre:
    """Return a centre with inputs of mean 0 and deviation 1 in training, and a 1 beside them."""
    mean, spread = centre.train.x.mean(axis=0), centre.train.x.std(axis=0, ddof=1)

    def scaled(part: Part) -> Part:
        return Part(np.c_[(part.x - mean) / (spread + 1e-9), np.ones(len(part.x))], part.y)

    return Centre(scaled(centre.train), scaled(centre.test))


def _read(path: Path) -> Centre:
    """Return a centre with its 13 inputs as they are."""
    with path.open(newline="") as file:
        cells = [row[:10] + row[13:] for row in csv.reader(file) if row]
    table = np.array([[float(c) for c in row] for row in cells if "?" not in row])
    ill = table[:, -1] > 0
    columns = [table[:, i] for i in range(10) if i not in _CATEGORIES]
    columns += [
        (table[:, i] == value).astype(float)
        for i, values in _CATEGORIES.items()
        for value in values
    ]
    x, test = np.stack(columns, axis=1), published_test_part(ill)
    y = ill.astype(float)
    return Centre(Part(x[~test], y[~test]), Part(x[test], y[test]))


@dataclass(eq=False)
class Batches:
    """Endless batches of shuffled patients; a pass that ends within a round goes on in the next."""

    part: Part
    rng: np.random.Generator
    _left: list[NDArray[np.int64]] = field(default_factory=list)

    def next(self) -> tuple[Floats, Floats]:
        """Return inputs and outcomes of the next batch."""
        if not self._left:
            order = self.rng.permutation(len(self.part.y))
            self._left = np.split(order, range(BATCH, len(order), BATCH))
        index = self._left.pop(0)
        return self.part.x[index], self.part.y[index]


def gradient(w: Floats, x: Floats, y: Floats) -> Floats:
    """Return that of the mean cross-entropy of a logistic regression."""
    return x.T @ (1 / (1 + np.exp(-(x @ w))) - y) / len(y)


def adam(w: Floats, part: Part, rng: np.random.Generator) -> Floats:
    """Return the weights after FLamby's training at one place."""
    batches, m, v = Batches(part, rng), np.zeros_like(w), np.zeros_like(w)
    for t in range(1, EPOCHS * -(-len(part.y) // BATCH) + 1):
        g = gradient(w, *batches.next())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - ADAM_RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def published(folder: Path) -> dict[str, dict[str, float]]:
    """Return FLamby's mean accuracies by method and test part; empty without its tables."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("heart_seed*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                part = "pooled" if row["Test"] == "Pooled Test" else SITES[int(row["Test"][-1])]
                found[row["Method"]][part].append(float(row["Metric"]))
    return {
        method: {part: float(np.mean(values)) for part, values in parts.items()}
        for method, parts in found.items()
    }


def figures(w: Floats, part: Part) -> dict[str, float]:
    """Return accuracy, balanced accuracy and AUROC of a logistic regression."""
    score, ill = part.x @ w, part.y > 0
    right = (score > 0) == ill
    figures: dict[str, Any] = {"accuracy": right.mean(), "balanced": None, "auroc": None}
    if ill.any() and not ill.all():
        above = (score[ill][:, None] > score[~ill]) + 0.5 * (score[ill][:, None] == score[~ill])
        figures |= {
            "balanced": (right[ill].mean() + right[~ill].mean()) / 2,
            "auroc": above.mean(),
        }
    return {name: None if value is None else float(value) for name, value in figures.items()}
