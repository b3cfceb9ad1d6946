"""What must not be computed in bfloat16."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, in float32 where autocast left it in bfloat16.

    A LayerNorm over bfloat16 adds up the gradient of its weights in bfloat16: over the tokens of
    a batch they were wrong by a tenth. Autocast sees to that on a GPU, but not on a CPU.
    """
    return x.float() if x.dtype == torch.bfloat16 else x
