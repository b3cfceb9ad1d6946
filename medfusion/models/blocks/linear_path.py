"""A linear function of fixed features of each modality, to one logit per label.

Beside a network it is the wide part of [1]_: what is linear in good features is found at once, and
the network learns the rest. By itself it has few parameters and a convex loss, which is what
little data and a small privacy budget can pay for.

Shapes: B batch, K columns, V values of a column that are read (2 + L), T text tokens,
P states of a note, S their width, L labels.

References
----------
.. [1] Cheng et al., "Wide & deep learning for recommender systems", DLRS 2016, arXiv 1606.07792.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfusion.data.encode import SELECTED
from medfusion.models.blocks.precision import at_least_float32
from medfusion.models.blocks.volume_cells import VolumeCells
from medfusion.models.blocks.wavelets import Wavelets
from medfusion.models.spec import FeatureAxis, InputSpec

# Length of an image's and a note's features: about that of a dozen columns, so that no modality
# takes the whole of a gradient, which privacy clips to one length.
_LENGTH = 6.0
_SMALLEST_SQUARE = 1e-4  # far below that of real features, far above the rounding of a blank image


class LinearPath(nn.Module):
    """The sum of one linear layer for each modality, all of which start at zero.

    - Image: its `Wavelets`, or a volume's `VolumeCells`. Text: the mean of the note's states. Each
      is brought to one length, and is zero, with a flag set, where there is none.
    - Tabular: values, missing flags and indicators of the selected columns. The selected flags
      are not among them: they are the same for every patient of a site, so they would say what
      the bias says, and lengthen each patient's gradient; what privacy clips away of that is
      lost to the rest.

    Parameters
    ----------
    spec
        Sizes of inputs and outputs.
    modalities
        What is read, out of image, tabular and text.
    text_width
        S; None without text.
    """

    def __init__(
        self, spec: InputSpec, modalities: tuple[str, ...], text_width: int | None
    ) -> None:
        super().__init__()
        self._modalities = modalities
        self._values = spec.column_values - 1
        if "image" in modalities:
            self.features = (
                VolumeCells(spec.image_channels, spec.solid)
                if len(spec.image_size) == 3
                else Wavelets(spec.image_channels, spec.plane)
            )
            self.image = _zero(self.features.count + 1, spec.labels)
        if "tabular" in modalities:
            self.tabular = _zero(spec.columns * self._values, spec.labels)
        if "text" in modalities:
            assert text_width is not None
            self.text = _zero(text_width + 1, spec.labels)

    def forward(self, inputs: dict[str, Tensor], states_BPS: Tensor | None) -> Tensor:
        """Return [B, L]; ``states_BPS`` are the states of the notes, if text is read."""
        found = []
        if "image" in self._modalities:
            seen = inputs.get("image_features")
            if seen is None:  # not computed in advance, or the image was changed since
                seen = self.features(inputs["image"])
            found.append(self.image(_flagged(seen, inputs["image_present"])))
        if "tabular" in self._modalities:
            found.append(self.tabular(read_columns(inputs["tabular"])))
        if states_BPS is not None:
            tokens_BT = inputs["tokens"]
            note = _mean(at_least_float32(states_BPS), tokens_BT)
            found.append(self.text(_flagged(note, (tokens_BT > 0).any(dim=1))))
        return torch.stack([at_least_float32(logits_BL) for logits_BL in found]).sum(dim=0)

    def feature_rows(self, name: str) -> dict[str, FeatureAxis]:
        """Name the weights that are indexed by columns; ``name`` is that of this module."""
        if "tabular" not in self._modalities:
            return {}
        return {f"{name}.tabular.weight": FeatureAxis(1, self._values)}


def _zero(features: int, labels: int) -> nn.Linear:
    layer = nn.Linear(features, labels, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def read_columns(x_BKV: Tensor) -> Tensor:
    """Return [B, K V] without the selected flags; columns that are not selected are zero."""
    before, selected_BK1, after = x_BKV.tensor_split((SELECTED, SELECTED + 1), dim=2)
    return (torch.cat([before, after], dim=2) * selected_BK1).flatten(1)


def _mean(states_BPS: Tensor, tokens_BT: Tensor) -> Tensor:
    """Return the direction of the mean over a note's states, [B, S]; padding does not count."""
    if states_BPS.shape[1] == 1:  # the encoder pools
        return states_BPS.squeeze(1)
    return (states_BPS * (tokens_BT > 0).unsqueeze(-1)).sum(dim=1)


def _flagged(features_BF: Tensor, present_B: Tensor) -> Tensor:
    """Bring features to one length, or to zero where nothing is there; add the flag."""
    shape = features_BF.shape[1:]
    scaled = functional.rms_norm(features_BF, shape, eps=_SMALLEST_SQUARE)
    scaled = scaled * (_LENGTH / shape[0] ** 0.5) * present_B.unsqueeze(1)
    absent_B1 = (~present_B).to(scaled.dtype).unsqueeze(1)
    return torch.cat([scaled, absent_B1], dim=1)
