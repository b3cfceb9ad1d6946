"""The rules: a layer's per-sample gradients from its input and the gradient of its output.

A rule returns the gradients of those of the layer's own parameters that are trained, by name, with
the samples in front. It never changes what it is given. A sum over positions that the layer's
kernels would leave to bfloat16 is a sum in float32.

Shapes: B samples, C channels in, O channels out, D width in, E width out, V rows of a table,
P values of a filter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from medfusion.models.blocks.standardized import StandardizedConv2d, standardized_with_scale

Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
"""From a layer, its input [B, ...] and its output's gradient [B, ...] to gradients by name."""

# A convolution in as many groups as there are samples is slow with few channels in each.
_FEW_CHANNELS = 16


def rule_for(layer: nn.Module) -> Rule | None:
    """Return the rule for a layer of exactly this type and settings, None if there is none."""
    if isinstance(layer, nn.Embedding) and (
        layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        return None  # they change the table in passing, or weigh a sample by the others
    own = {name for name, value in layer.named_parameters(recurse=False) if value.requires_grad}
    return _RULES.get(type(layer)) if own <= {"weight", "bias"} else None


def float32_or_wider(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which gradients of ``dtype`` are kept, normed and added up."""
    return torch.promote_types(dtype, torch.float32)


def linear(layer: nn.Linear, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of a linear layer, from [B, ..., D] and [B, ..., E]."""
    tokens = x.to(gradient.dtype).reshape(len(x), -1, x.shape[-1])
    gradients = gradient.reshape(len(x), -1, gradient.shape[-1])
    found = {}
    if _trained(layer, "weight"):
        found["weight"] = torch.bmm(gradients.transpose(1, 2), tokens)
    if _trained(layer, "bias"):
        found["bias"] = gradients.sum(1, dtype=float32_or_wider(gradient.dtype))
    return found


def convolution(layer: _ConvNd, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of a convolution in any number of dimensions, from [B, C, ...] and [B, O, ...]."""
    padded, padding = _padded(layer, x.to(gradient.dtype))
    return _of_convolution(layer, padded, gradient, padding, gradient)


def transposed_convolution(
    layer: _ConvTransposeNd, x: Tensor, gradient: Tensor
) -> dict[str, Tensor]:
    """Gradients of a transposed convolution: those of a convolution the other way round."""
    padding = tuple(int(side) for side in layer.padding)
    return _of_convolution(layer, gradient, x.to(gradient.dtype), padding, gradient)


def _of_convolution(
    layer: _ConvNd, wide: Tensor, narrow: Tensor, padding: Sequence[int], gradient: Tensor
) -> dict[str, Tensor]:
    """Gradients of filters that lead from ``wide`` to ``narrow``, and of what is added after."""
    found = {}
    if _trained(layer, "weight"):
        found["weight"] = _filters(
            wide, narrow, layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups
        )
    if _trained(layer, "bias"):
        found["bias"] = gradient.flatten(2).sum(2, dtype=float32_or_wider(gradient.dtype))
    return found


def standardized_convolution(
    layer: StandardizedConv2d, x: Tensor, gradient: Tensor
) -> dict[str, Tensor]:
    """Gradients of a convolution whose weights are standardised."""
    found = convolution(layer, x, gradient)
    if "weight" in found:
        by_used = found["weight"].flatten(2).to(float32_or_wider(gradient.dtype))
        by_weight = past_standardization(by_used, layer.weight.detach().flatten(1))
        found["weight"] = by_weight.reshape(-1, *layer.weight.shape)
    return found


def past_standardization(gradients: Tensor, weight: Tensor) -> Tensor:
    """Return gradients [B, O, P] by the weights [O, P], given those by the standardised ones.

    With c the centred weights of a channel, r = (c c + s) ** -0.5 and u = r c, a gradient g by u
    is r (g - u (u g)) by c, and that without its mean by the weights.
    """
    used, scale = standardized_with_scale(weight)
    along = (gradients * used).sum(-1, keepdim=True)  # a quarter of the time of an einsum
    shared = gradients.mean(-1, keepdim=True)  # ``along * used`` has no mean
    return (gradients - shared).addcmul_(along, used, value=-1).mul_(scale)


def group_norm(layer: nn.GroupNorm, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of a GroupNorm, from [B, C, ...] twice.

    All samples together are one sample of B C channels: what the kernel adds up for a channel is
    then a sum over positions of one sample.
    """
    samples, channels = x.shape[:2]
    count = samples * channels
    dtype = normalized_in(x.dtype, x.device.type)
    folded, folded_gradient = (each.to(dtype).reshape(1, count, -1) for each in (x, gradient))
    sizes = (1, count, folded.shape[2], samples * layer.num_groups)
    ones = torch.ones(count, dtype=float32_or_wider(dtype), device=x.device)
    _, mean, scale = torch.native_group_norm(
        folded, ones, torch.zeros_like(ones), *sizes, layer.eps
    )
    _, by_weight, by_bias = torch.ops.aten.native_group_norm_backward(
        folded_gradient, folded, mean, scale, ones, *sizes, [False, True, True]
    )
    found = {"weight": by_weight, "bias": by_bias}
    return {n: v.reshape(samples, channels) for n, v in found.items() if _trained(layer, n)}


def normalized_in(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return the type in which a kernel reads inputs of ``dtype`` beside float32 statistics.

    On a CPU they stay as they are, which is fast; other devices refuse a mixture.
    """
    return dtype if device == "cpu" else float32_or_wider(dtype)


def layer_norm(layer: nn.LayerNorm, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of a LayerNorm, from [B, ..., *normalized_shape] twice."""
    dtype, shape = float32_or_wider(x.dtype), layer.normalized_shape
    g = gradient.to(dtype)
    found = {}
    if _trained(layer, "weight"):
        normed = functional.layer_norm(x.to(dtype), shape, eps=layer.eps)
        found["weight"] = normed.mul_(g).reshape(len(x), -1, *shape).sum(1)
    if _trained(layer, "bias"):
        found["bias"] = g.reshape(len(x), -1, *shape).sum(1)
    return found


def embedding(layer: nn.Embedding, ids: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of a table [V, D], from ids [B, ...] and [B, ..., D]."""
    rows, width = layer.weight.shape
    g = gradient.to(float32_or_wider(gradient.dtype)).reshape(ids.numel(), width)
    if layer.padding_idx is not None:
        g = g.masked_fill((ids == layer.padding_idx).reshape(-1, 1), 0)
    first = rows * torch.arange(len(ids), device=ids.device).unsqueeze(1)
    places = (ids.reshape(len(ids), -1) + first).flatten()
    found = g.new_zeros(len(ids) * rows, width).index_add_(0, places, g)
    return {"weight": found.reshape(len(ids), rows, width)}


def _trained(layer: nn.Module, name: str) -> bool:
    parameter = getattr(layer, name, None)
    return parameter is not None and parameter.requires_grad


def _padded(layer: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return a layer's input, and the zeros that are still to be put around it."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return x, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    sides = list(layer._reversed_padding_repeated_twice)
    return functional.pad(x, sides, mode=mode), (0,) * len(layer.kernel_size)


def _filters(
    x: Tensor,
    gradient: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradients [B, O, C / groups, *kernel] of a convolution's filters."""
    if all(side == 1 for side in kernel) and not any(padding):
        return _pointwise(x, gradient, stride, groups).reshape(
            len(x), gradient.shape[1], -1, *kernel
        )
    inside = x.shape[1] // groups
    together = 1 if inside < _FEW_CHANNELS else len(x)
    parts = []
    for some, their in zip(torch.split(x, together), torch.split(gradient, together), strict=True):
        filters = x.new_empty(()).expand(their.shape[0] * their.shape[1], inside, *kernel)
        _, found, _ = torch.ops.aten.convolution_backward(
            their.reshape(1, -1, *their.shape[2:]),
            some.reshape(1, -1, *some.shape[2:]),
            filters,  # only its shape is read
            None,
            list(stride),
            list(padding),
            list(dilation),
            False,
            [0] * len(kernel),
            groups * len(some),
            [False, True, False],
        )
        parts.append(found.reshape(len(some), -1, inside, *kernel))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _pointwise(x: Tensor, gradient: Tensor, stride: Sequence[int], groups: int) -> Tensor:
    """Gradients [B groups, O / groups, C / groups] of filters of one position."""
    places: list[Any] = [..., *(slice(None, None, step) for step in stride)]
    seen = x[tuple(places)]
    inputs = seen.reshape(len(x) * groups, x.shape[1] // groups, -1)
    gradients = gradient.reshape(len(x) * groups, gradient.shape[1] // groups, -1)
    return torch.bmm(gradients, inputs.transpose(1, 2))


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
    StandardizedConv2d: standardized_convolution,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}
