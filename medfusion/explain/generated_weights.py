"""How the weights that HyperFusion generates move with each tabular feature.

Shapes: N studies, F features, S values of a feature, B batch, K columns, V values of a column.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfusion.data.encode import encode_tabular
from medfusion.data.task import CategoricalFeature, NumericFeature, Task
from medfusion.data.thresholds import Selection
from medfusion.explain.scores import as_in_use
from medfusion.models.blocks.generated import Generated
from medfusion.models.blocks.standardized import StandardizedConv2d, standardized
from medfusion.models.contract import Model
from medfusion.models.hyperfusion import HyperFusion
from medfusion.models.medfusion_net import MedFusionNet

_AT_ONCE = 8  # studies: each has weights of its own
_VALUES = 13  # of a numeric feature, from the low end of its range to the high one


@dataclass(frozen=True, eq=False)
class Sweep:
    """What one feature moves.

    Attributes
    ----------
    feature
        Its name.
    values
        The values that it was given, [S]; a binary one 0 and 1, a categorical one the number of
        each of its values.
    change
        By layer, [S]: the Frobenius norm of the generated weights minus those at the first
        value, over the norm of the layer's own weights; the mean over studies.
    """

    feature: str
    values: NDArray[np.float64]
    change: dict[str, NDArray[np.float64]]


def generated_layers(model: Model) -> dict[str, Generated]:
    """Name the layers whose weights are generated; none where nothing is."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Generated)}


@torch.no_grad()
def sweep_features(
    model: HyperFusion | MedFusionNet,
    features: NDArray[np.float64],
    task: Task,
    selection: Selection | None,
) -> list[Sweep]:
    """Give each selected feature each value of its public range, all else as each study has it.

    Parameters
    ----------
    features
        float64 [N, F] as in `medfusion.data.studies.Studies`.
    selection
        Under which the model reads them; a feature that is not selected moves nothing.
    """
    selected = None if selection is None else set(selection.features)
    sweeps = []
    with as_in_use(model):
        for number, name in enumerate(task.features):
            if selected is not None and name not in selected:
                continue
            values = _values_of(task, name)
            embeddings = [
                model.embedding(_encoded(model, features, number, value, task, selection))
                for value in values
            ]
            change = {
                layer: _changes(of, embeddings) for layer, of in generated_layers(model).items()
            }
            sweeps.append(Sweep(name, values, change))
    return sweeps


def _values_of(task: Task, name: str) -> NDArray[np.float64]:
    feature = task.features[name]
    if isinstance(feature, NumericFeature):
        return np.linspace(feature.low, feature.high, _VALUES)
    count = len(feature.values) if isinstance(feature, CategoricalFeature) else 2
    return np.arange(count, dtype=np.float64)


def _encoded(
    model: HyperFusion | MedFusionNet,
    features: NDArray[np.float64],
    number: int,
    value: float,
    task: Task,
    selection: Selection | None,
) -> Tensor:
    """Return tabular inputs [N, K, V] in which every study has one value of a feature."""
    changed = features.copy()
    changed[:, number] = value
    like = next(model.parameters())
    return torch.from_numpy(encode_tabular(changed, task, selection)).to(like)


def _changes(layer: Generated, embeddings: list[Tensor]) -> NDArray[np.float64]:
    """Return the change [S] of a layer's weights from those at the first embedding [N, ...].

    No more is held than the weights at two values, of a few studies.
    """
    moved = []
    for of_values in zip(*(torch.split(one, _AT_ONCE) for one in embeddings), strict=True):
        first = layer.weights(of_values[0])
        moved.append(
            torch.stack([(layer.weights(one) - first).flatten(1).norm(dim=1) for one in of_values])
        )
    own = layer.base.weight
    if isinstance(layer.base, StandardizedConv2d):
        own = standardized(own)  # what it convolves with
    mean: NDArray[np.float64] = torch.cat(moved, dim=1).mean(dim=1).double().cpu().numpy()
    return mean / float(own.norm())
