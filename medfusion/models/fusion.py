"""Modality dropout: training without a modality now and then, so that none is leaned on alone.

Shapes: B batch, K columns, T text tokens.
"""

import torch
from torch import Tensor

from medfusion.data.encode import FIRST_INDICATOR, MISSING, SELECTED, VALUE


def drop_modalities(
    inputs: dict[str, Tensor], rate: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Hide each modality of each study with probability ``rate``, as if it were missing.

    Studies are treated independently of one another. A study that would lose everything keeps
    one modality that it has, drawn at random.

    Parameters
    ----------
    inputs
        The model's inputs (see `medfusion.models.contract`); left as they are.
    rate
        0 returns the inputs and draws nothing.
    generator
        A CPU generator, so that every device sees the same draws.
    """
    present = presence(inputs)
    if rate == 0 or len(present) < 2:
        return inputs
    names = list(present)
    has = torch.stack([present[name] for name in names], dim=1)
    # Study by study, so that a batch cut into pieces draws the same.
    draws = torch.rand(len(has), 2, len(names), generator=generator).to(has.device)
    stays = has & (draws[:, 0] >= rate)
    spared = torch.where(has, draws[:, 1], -1.0).argmax(dim=1, keepdim=True)
    lost_all = ~stays.any(dim=1, keepdim=True)
    stays = stays | (lost_all & torch.zeros_like(stays).scatter(1, spared, True))
    changed = dict(inputs)
    for number, name in enumerate(names):
        changed |= _HIDE[name](inputs, stays[:, number])
    return changed


def presence(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which studies have which modality: bool [B] by modality."""
    present = {}
    if "image" in inputs:
        present["image"] = inputs["image_present"]
    if "tabular" in inputs:
        x_BKV = inputs["tabular"]
        present["tabular"] = ((x_BKV[..., SELECTED] > 0) & (x_BKV[..., MISSING] == 0)).any(dim=1)
    if "tokens" in inputs:
        present["text"] = (inputs["tokens"] > 0).any(dim=1)
    return present


def _hide_image(inputs: dict[str, Tensor], stays_B: Tensor) -> dict[str, Tensor]:
    image = inputs["image"]
    image = image.masked_fill(~stays_B.view(-1, *[1] * (image.ndim - 1)), 0.0)
    return {"image": image, "image_present": inputs["image_present"] & stays_B}


def _hide_tabular(inputs: dict[str, Tensor], stays_B: Tensor) -> dict[str, Tensor]:
    return {"tabular": hide_columns(inputs["tabular"], ~stays_B[:, None])}


def hide_columns(x_BKV: Tensor, hidden: Tensor) -> Tensor:
    """Return tabular inputs [B, K, V] in which the columns ``hidden`` look missing.

    ``hidden`` is bool [B, K], or [B, 1] for all columns of a study. Selected flags stay.
    """
    x_BKV, hidden = x_BKV.clone(), hidden[..., None]
    x_BKV[..., VALUE : VALUE + 1].masked_fill_(hidden, 0.0)
    x_BKV[..., MISSING : MISSING + 1].masked_fill_(hidden, 1.0)
    x_BKV[..., FIRST_INDICATOR:].masked_fill_(hidden, 0.0)
    return x_BKV


def _hide_text(inputs: dict[str, Tensor], stays_B: Tensor) -> dict[str, Tensor]:
    return {"tokens": inputs["tokens"].masked_fill(~stays_B[:, None], 0)}


_HIDE = {"image": _hide_image, "tabular": _hide_tabular, "text": _hide_text}
