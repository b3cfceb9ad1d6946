"""Per-sample gradients of layers that Opacus does not know.

Importing the module registers them; without, Opacus would run such a layer once more under vmap.
"""

from typing import cast

import torch
from opacus.grad_sample.utils import register_grad_sampler
from torch import Tensor, nn
from torch.nn import functional

from medfusion.models.blocks.standardized import StandardizedConv2d
from medfusion.privacy.book_keeping.layers import past_standardization


# the decorator has no types
@register_grad_sampler(StandardizedConv2d)  # type: ignore[untyped-decorator]
def standardized_conv2d_gradients(
    layer: StandardizedConv2d, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Return each sample's gradient of the weights, [B, C', C, h, w], for one group of channels.

    Parameters
    ----------
    layer
        Has no bias.
    activations
        The layer's input [B, C, H, W].
    backprops
        Gradient [B, C', H', W'] of the loss by the layer's output.
    """
    plain = layer.groups == 1 and layer.bias is None and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str):
        raise ValueError(f"Expected one group, no bias and zeros of padding in pixels: {layer}.")
    patches = functional.unfold(
        activations[0].to(backprops.dtype),
        layer.kernel_size,
        dilation=layer.dilation,
        padding=layer.padding,
        stride=layer.stride,
    )
    weight = cast(nn.Parameter, layer.weight)
    by_standardized = torch.einsum("boq,bpq->bop", backprops.flatten(2), patches)
    by_weight = past_standardization(by_standardized.to(weight.dtype), weight.detach().flatten(1))
    return {weight: by_weight.reshape(-1, *weight.shape)}
