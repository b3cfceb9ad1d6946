"""Studies that are no patient's, in the shape of a site's: to look at a model with.

Shapes: B studies asked for, L labels.
"""

import torch
from torch import Tensor

from medfusion.data.encode import MISSING, SELECTED
from medfusion.models.contract import BOXES
from medfusion.training.local_run import TrainingStudies


class PublicStudies:
    """Random studies: all complete but the last, which lacks every input unless it is the only one.

    Parameters
    ----------
    like
        A site's studies. Only shapes and types are asked of it, which follow from the task: no
        study is read, and how many there are plays no part.
    rows
        How many to make.
    generator
        A CPU generator that owes nothing to the site.
    """

    def __init__(self, like: TrainingStudies, *, rows: int, generator: torch.Generator) -> None:
        nobody = torch.empty(0, dtype=torch.int64)
        shapes = like.inputs(nobody, torch.device("cpu"))
        self._inputs = {
            name: _filled(name, shape, rows, generator) for name, shape in shapes.items()
        }
        if rows > 1:
            for values in self._inputs.values():
                values[-1] = 0
        labels = (rows, like.labels.shape[1])
        self.known = (torch.rand(labels, generator=generator) < 0.8).float()
        self.known[0] = 1.0
        self.labels = (torch.rand(labels, generator=generator) < 0.5).float() * self.known
        self.patients = torch.arange(rows)
        self.column_features = like.column_features

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return the model's inputs for the studies at ``index`` (int64 [B], on the CPU)."""
        return {name: whole[index].to(device) for name, whole in self._inputs.items()}


def _filled(name: str, like: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Return ``rows`` rows of random values of a kind of input, of which ``like`` [0, ...] is."""
    shape = (rows, *like.shape[1:])
    if name == BOXES:  # small ones, within any image
        near = 4.0 * torch.rand((*shape[:-1], 2), generator=generator)
        return torch.cat([near, near + 8.0], dim=-1)
    if like.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    if not like.is_floating_point():
        # Ids below 2 are in every table that is worth one; 0 would be padding.
        lowest, end = (1, 3) if name == "tokens" else (0, 2)
        return torch.randint(lowest, end, shape, generator=generator).to(like.dtype)
    values = 2.0 * torch.rand(shape, generator=generator, dtype=like.dtype) - 1.0
    if name == "tabular":
        values[..., MISSING] = 0.0
        values[..., SELECTED] = 1.0
    return values
