"""Groups of patients by a feature of the task, whose figures are compared.

An attribute is written as a feature's name (``sex``), a numeric one with the public edges of its
bands behind it (``age:40,60``: below 40, 40 to below 60, 60 and above). A patient whose feature is
missing is in no group, so one patient is in at most one group of each attribute.

Legend: N studies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medfusion.data.task import CategoricalFeature, NumericFeature, Task
from medfusion.errors import ConfigError, did_you_mean


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
    found = tuple(attribute_of(text, task, where="evaluation.subgroups") for text in written)
    features = [attribute.feature for attribute in found]
    if twice := sorted({name for name in features if features.count(name) > 1}):
        raise ConfigError(
            f"evaluation.subgroups: expected each feature once, found {twice[0]!r} twice"
        )
    return found


def attribute_of(text: str, task: Task, *, where: str) -> Attribute:
    """Return the attribute that is written in ``text``; ``where`` heads the message on failure.

    Raises
    ------
    ConfigError
        For an unknown feature, a number without edges, or edges that do not rise within the range.
    """
    name, _, bands = text.partition(":")
    feature = task.features.get(name)
    if feature is None:
        known = ", ".join(task.features)
        raise ConfigError(
            f"{where} {text}: expected one of {known}{did_you_mean(name, task.features)}"
        )
    position = list(task.features).index(name)
    if isinstance(feature, NumericFeature):
        edges = _edges(text, bands, feature, where)
        return Attribute(name, position, _names(edges), edges)
    if bands:
        raise ConfigError(f"{where} {text}: {name} has groups of its own; expected {where} {name}")
    groups = feature.values if isinstance(feature, CategoricalFeature) else ("0", "1")
    return Attribute(name, position, groups)


def _edges(text: str, bands: str, feature: NumericFeature, where: str) -> tuple[float, ...]:
    """Read the edges of bands: rising, inside the feature's public range."""
    try:
        edges = tuple(float(edge) for edge in bands.split(","))
    except ValueError:
        edges = ()
    inside = all(feature.low < edge < feature.high for edge in edges)
    if not edges or not inside or any(np.diff(edges) <= 0):
        raise ConfigError(
            f"{where} {text}: expected rising cuts between {feature.low:g} and {feature.high:g}, "
            f"as in {where} {text.partition(':')[0]}:A,B"
        )
    return edges


def _names(edges: tuple[float, ...]) -> tuple[str, ...]:
    between = [f"{low:g} to below {high:g}" for low, high in pairwise(edges)]
    return (f"below {edges[0]:g}", *between, f"{edges[-1]:g} and above")
