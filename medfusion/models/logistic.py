"""Logistic regression on the tabular columns: the smallest registered model.

Shapes: B batch, K columns, V values of a column that are read (2 + L), L labels.
"""

import torch
from torch import Tensor, nn

from medfusion.data.encode import SELECTED
from medfusion.models.contract import Model
from medfusion.models.options import LogisticOptions
from medfusion.models.spec import FeatureAxis, InputSpec


class Logistic(Model):
    """One linear layer; the weights start at zero, since the loss is convex.

    The selected flags are not among its inputs. They are the same for every patient of a site,
    so they would say what the bias says, and lengthen each patient's gradient: what privacy
    clips away of that is lost to the rest.
    """

    def __init__(
        self, options: LogisticOptions, spec: InputSpec, modalities: tuple[str, ...]
    ) -> None:
        super().__init__(options, spec, modalities)
        self._width = spec.column_values - 1
        self.linear = nn.Linear(spec.columns * self._width, spec.labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits [B, L]; the missing flags of unselected columns are hidden."""
        x_BKV = inputs["tabular"]
        before, selected_BK1, after = x_BKV.tensor_split((SELECTED, SELECTED + 1), dim=2)
        read_BKV = torch.cat([before, after], dim=2) * selected_BK1
        logits: Tensor = self.linear(read_BKV.flatten(1))
        return logits

    def label_biases(self) -> list[nn.Parameter]:
        """Name the bias of the one layer."""
        return [self.linear.bias]

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the weight [L, K * V], whose second axis is indexed by columns."""
        return {"linear.weight": FeatureAxis(1, self._width)}
