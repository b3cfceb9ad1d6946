import pytest
import torch

from medfusion.models.blocks.exchange import MapToTokens
from medfusion.models.blocks.tokens import TextTokens


def tokens_of_a_map(x_BCHW):
    return MapToTokens(24, 16, (8, 8)), (x_BCHW,)


def tokens_of_notes(x_BCHW):
    states = x_BCHW.flatten(2).transpose(1, 2)
    return TextTokens(24, 16, pooled=False), (states, torch.ones(16, 64, dtype=torch.int64))


@pytest.mark.parametrize("make", [tokens_of_a_map, tokens_of_notes])
def test_gradients_of_a_layer_norm_survive_bfloat16(make):
    """Summed in bfloat16 over 16 x 64 tokens they were wrong by a tenth."""
    torch.manual_seed(0)
    x = torch.randn(16, 24, 8, 8)
    weigh = torch.rand(16) + torch.randn(16)
    found = {}
    for enabled in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            block, inputs = make(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            half = [v.bfloat16() if enabled and v.is_floating_point() else v for v in inputs]
            out = block(*half)
        tokens = out if isinstance(out, torch.Tensor) else out.tokens
        (tokens.float() * weigh * (tokens.float() + 1)).sum().backward()
        found[enabled] = torch.cat([block.norm.weight.grad, block.norm.bias.grad])
    assert (found[True] - found[False]).norm() < 0.02 * found[False].norm()
