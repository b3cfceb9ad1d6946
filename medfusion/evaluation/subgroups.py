"""Groups of patients by a feature of the task, whose figures are compared.

An attribute is written as a feature's name (``sex``), a numeric one with the public edges of its
bands behind it (``age:40,60``: below 40, 40 to 60, from 60). A patient whose feature is missing is
in no group, so one patient is in at most one group of each attribute.

Legend: N studies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import CategoricalFeature, NumericFeature, Task
from medfusion.errors import ConfigError, did_you_mean

_KEY = "evaluation.subgroups"


@dataclass(frozen=True)
class Attribute:
    """What patients are grouped by: ``groups`` are the names of the groups, in order.

    ``position`` is that of the feature in the task; ``edges`` are empty unless it is numeric.
    """

    feature: str
    position: int
    groups: tuple[str, ...]
    edges: tuple[float, ...] = ()

    def members(self, features: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return who is in which group: bool [groups, N], for features [N, F] of the task."""
        values = features[:, self.position]
        known = ~np.isnan(values)
        codes = np.searchsorted(self.edges, values, side="right") if self.edges else values
        return np.array([known & (codes == group) for group in range(len(self.groups))])


def attributes_of(written: Sequence[str], task: Task) -> tuple[Attribute, ...]:
    """Return the attributes that ``evaluation.subgroups`` names.

    Raises
    ------
    ConfigError
        If one is no feature of the task, is named twice, or its edges do not fit.
    """
    found = tuple(_attribute(text, task) for text in written)
    features = [attribute.feature for attribute in found]
    if twice := sorted({name for name in features if features.count(name) > 1}):
        raise ConfigError(f"{_KEY}: expected each feature once, found {twice[0]!r} twice")
    return found


def _attribute(text: str, task: Task) -> Attribute:
    name, _, bands = text.partition(":")
    feature = task.features.get(name)
    if feature is None:
        raise ConfigError(
            f"{_KEY}: {name!r} is no feature of the task{did_you_mean(name, task.features)}"
        )
    position = list(task.features).index(name)
    if isinstance(feature, NumericFeature):
        edges = _edges(text, bands, feature)
        shown = [f"{edge:g}" for edge in edges]
        between = [f"{a} to {b}" for a, b in pairwise(shown)]
        return Attribute(
            name, position, (f"below {shown[0]}", *between, f"from {shown[-1]}"), edges
        )
    if bands:
        raise ConfigError(f"{_KEY}: {text!r}: only numeric features have bands")
    groups = feature.values if isinstance(feature, CategoricalFeature) else ("0", "1")
    return Attribute(name, position, groups)


def _edges(text: str, bands: str, feature: NumericFeature) -> tuple[float, ...]:
    """Read the edges of bands: rising, inside the feature's public range."""
    try:
        edges = tuple(float(edge) for edge in bands.split(","))
    except ValueError:
        edges = ()
    inside = all(feature.low < edge < feature.high for edge in edges)
    if not edges or not inside or any(np.diff(edges) <= 0):
        raise ConfigError(
            f"{_KEY}: {text!r}: expected rising edges of bands between {feature.low:g} and "
            f"{feature.high:g}, as in 'age:40,60'"
        )
    return edges
