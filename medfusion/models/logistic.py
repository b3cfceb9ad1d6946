"""Logistic regression on fixed features of each modality: the smallest registered model.

Shapes: B batch, P states of a note, S their width, L labels.
"""

from typing import cast

from torch import Tensor, nn

from medfusion.models.blocks.learned import scaled_embedding, with_bias
from medfusion.models.blocks.linear_path import LinearPath
from medfusion.models.contract import Model
from medfusion.models.options import LogisticOptions
from medfusion.models.spec import FeatureAxis, InputSpec


class Logistic(Model):
    """A `LinearPath` and a bias; the weights start at zero, since the loss is convex."""

    def __init__(
        self, options: LogisticOptions, spec: InputSpec, modalities: tuple[str, ...]
    ) -> None:
        super().__init__(options, spec, modalities)
        text_width = None
        if "text" in modalities:
            # imported here, since transformers takes a second
            from medfusion.models.blocks.text_encoder import TextEncoder

            self.text_encoder = TextEncoder(options.text, spec.max_tokens)
            text_width = self.text_encoder.width
        self.linear = LinearPath(spec, modalities, text_width)
        self.bias = scaled_embedding(spec.labels, 1, 0.0)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits [B, L]."""
        states_BPS = self.text_encoder.states_of(inputs) if "text" in self.modalities else None
        return with_bias(self.linear(inputs, states_BPS), self.bias)

    def label_biases(self) -> list[nn.Parameter]:
        """Name the one bias, [L, 1]."""
        return [cast(nn.Parameter, self.bias.weight)]

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the weight [L, K * V], whose second axis is indexed by columns."""
        return self.linear.feature_rows("linear")
