"""Layers part of whose weights are made, for each patient, from the patient's tabular data.

Hypernetworks in the manner of HyperFusion [1]_. A generated layer is an ordinary layer (the base)
plus the same layer with weights W(e), linear in an embedding e; with the generator at zero it is
the ordinary layer. Generators are `nn.Linear`, and W(e) is applied sample by sample by grouped
convolution or a batched product, so that sample i meets the weights of sample i only, and
per-sample gradients follow from the generator's input and output as for any linear layer.

Initial values after [2]_: with E[e_i^2] = 1 (see `Embedding`) and l entries in e, generator
weights of variance ``gain / (fan_in l)`` give weights W(e) of variance ``gain / fan_in``, by which
the layer keeps the variance of its rectified input. The variance that counts is that of the
embedding, from which the weights are made, not that of the tabular data. Base and generated
weights share it.

Shapes: B batch, C channels in, O channels out, l width of the embedding, r rank, V values read of
a tabular column (2 + L), K columns.

References
----------
.. [1] Duenias et al., "HyperFusion: a hypernetwork approach to multimodal integration of tabular
   and medical imaging data for predictive modeling", Medical Image Analysis 2025, arXiv 2403.13319.
.. [2] Chang et al., "Principled weight initialization for hypernetworks", ICLR 2020.
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from medfusion.errors import ConfigError, did_you_mean
from medfusion.models.blocks.linear_path import LinearPath, read_columns
from medfusion.models.blocks.precision import at_least_float32
from medfusion.models.spec import FeatureAxis, InputSpec

_GAIN = 2.0  # as the base's, for a rectified input
_SHARE = 0.5  # of a layer's initial variance that comes from the generated weights
_HIDDEN = 16
_STEM = "stem"  # an encoder's first convolution


class Columns(nn.Module):
    """A linear layer on the values, missing flags and indicators of the selected columns."""

    def __init__(self, spec: InputSpec, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.values = spec.column_values - 1
        self.tabular = nn.Linear(spec.columns * self.values, width, bias=bias)

    def forward(self, x_BKV: Tensor) -> Tensor:
        """Return [B, width]; a column that is not selected adds nothing."""
        found: Tensor = self.tabular(read_columns(x_BKV))
        return found


class Embedding(nn.Module):
    """Tabular data as l numbers whose mean square is 1 for every patient, [B, l]."""

    def __init__(self, spec: InputSpec, width: int) -> None:
        super().__init__()
        self.columns = Columns(spec, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, width)

    def forward(self, x_BKV: Tensor) -> Tensor:
        """Return the embedding, in float32 or wider."""
        e_Bl = at_least_float32(self.out(torch.relu(self.columns(x_BKV))))
        return functional.rms_norm(e_Bl, e_Bl.shape[1:], eps=1e-6)


class Generated(nn.Module):
    """A convolution or linear layer with generated weights beside its own.

    Parameters
    ----------
    base
        The layer; its initial weights are scaled down to make room for the generated ones. Where
        they are standardised, which undoes that, they come to one half of the sum all the same.
    embedding
        l.
    rank
        r: a generated weight matrix [O, C k^d] is a product of [O, r] and [r, C k^d], each made
        from the embedding; for large layers. None: it is made as it is.
    """

    def __init__(self, base: nn.Linear | _ConvNd, embedding: int, rank: int | None = None) -> None:
        super().__init__()
        self.base = base
        out, *inside = base.weight.shape
        fan_in = prod(inside)
        self._rank = rank
        self._shape = (out if rank is None else rank, *inside)
        self.generator = nn.Linear(embedding, prod(self._shape), bias=False)
        variance = _GAIN * _SHARE / (fan_in * embedding)
        nn.init.uniform_(self.generator.weight, -sqrt(3 * variance), sqrt(3 * variance))
        if rank is not None:
            self.left = nn.Linear(embedding, out * rank, bias=False)
            limit = sqrt(3 / (rank * embedding))
            nn.init.uniform_(self.left.weight, -limit, limit)
        self.bias = nn.Linear(embedding, out, bias=False)
        nn.init.zeros_(self.bias.weight)  # else it would add to the variance
        with torch.no_grad():
            base.weight.mul_(sqrt(1 - _SHARE))

    def forward(self, x: Tensor, e_Bl: Tensor) -> Tensor:
        """Return the layer's output for ``x`` [B, C, ...] under the weights of each sample."""
        weight: Tensor = self.generator(e_Bl).reshape(e_Bl.shape[0], *self._shape)
        made = self._made(x, weight)
        if self._rank is not None:
            left = self.left(e_Bl).reshape(e_Bl.shape[0], -1, self._rank)
            places = made.shape[2:]
            made = torch.bmm(left, made.reshape(*made.shape[:2], -1)).reshape(
                x.shape[0], -1, *places
            )
        bias = self.bias(e_Bl)
        total: Tensor = self.base(x) + made + bias.reshape(*bias.shape, *[1] * (made.ndim - 2))
        return total

    def weights(self, e_Bl: Tensor) -> Tensor:
        """Return the weights that are made of each embedding, [B, O, C, ...]."""
        weight: Tensor = self.generator(e_Bl).reshape(len(e_Bl), *self._shape)
        if self._rank is not None:
            left = self.left(e_Bl).reshape(len(e_Bl), -1, self._rank)
            weight = torch.bmm(left, weight.flatten(2)).reshape(-1, *self.base.weight.shape)
        return weight

    def _made(self, x: Tensor, weight: Tensor) -> Tensor:
        if isinstance(self.base, nn.Linear):
            return torch.bmm(weight, x.unsqueeze(2)).squeeze(2)
        return convolve_each(x, weight, self.base.stride, self.base.padding)


def run(layer: nn.Module, x: Tensor, embedding: Tensor | None) -> Tensor:
    """Return a layer's output, whether it is generated or not."""
    found: Tensor = layer(x, embedding) if isinstance(layer, Generated) else layer(x)
    return found


def generate(
    layers: nn.Module, names: Sequence[str], *, embedding: int, rank: int | None, prefix: str = ""
) -> None:
    """Replace the named convolutions and linear layers below ``layers`` by generated ones.

    ``prefix`` is what the names begin with, before those of ``layers``.

    Raises
    ------
    ConfigError
        If there is no such layer, or none that can be generated.
    """
    known = {prefix + name: layer for name, layer in can_be_generated(layers).items()}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"model.generated: no layer {name!r} that can be generated"
                f"{did_you_mean(name, known)}; expected some of {', '.join(known)}"
            )
        layers.set_submodule(name.removeprefix(prefix), Generated(known[name], embedding, rank))


def can_be_generated(layers: nn.Module) -> dict[str, nn.Linear | _ConvNd]:
    """Name the convolutions and linear layers below ``layers`` whose weights may be generated.

    Not those of an `Embedding`, of which weights are made, of `Columns` and a `LinearPath`, which
    read no maps, nor an encoder's ``stem``, whose input is no rectified one.
    """
    apart = {
        part
        for whole in layers.modules()
        if isinstance(whole, Embedding | Columns | LinearPath)
        for part in whole.modules()
    }
    return {
        name: layer
        for name, layer in layers.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd)
        and layer not in apart
        and name.rpartition(".")[2] != _STEM
    }


def column_rows(layers: nn.Module) -> dict[str, FeatureAxis]:
    """Name the weight of every `Columns` below ``layers``, and where columns are in it."""
    return {
        f"{name}.tabular.weight": FeatureAxis(1, layer.values)
        for name, layer in layers.named_modules()
        if isinstance(layer, Columns)
    }


def convolve_each(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
) -> Tensor:
    """Convolve sample i of ``x`` [B, C, ...] with ``weight[i]`` of [B, O, C, ...]; [B, O, ...]."""
    batch, out, inside, *kernel = weight.shape
    if all(side == 1 for side in kernel) and not any(padding):
        places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
        seen = x[places]
        found = torch.bmm(weight.reshape(batch, out, inside), seen.flatten(2))
        return found.reshape(batch, out, *seen.shape[2:])
    convolve = functional.conv3d if len(kernel) == 3 else functional.conv2d
    found = convolve(
        x.reshape(1, batch * inside, *x.shape[2:]),
        weight.reshape(batch * out, inside, *kernel),
        stride=stride,
        padding=padding,
        groups=batch,
    )
    return found.reshape(batch, out, *found.shape[2:])
