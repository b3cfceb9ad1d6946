import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from medfusion.models.blocks.attention import Attention
from medfusion.models.blocks.densenet import (
    DenseLayer,
    DenseStage,
    Stem,
    Transition,
    group_norm,
    stem_stride,
)
from medfusion.models.blocks.exchange import TokensToMap, pool_to
from medfusion.models.blocks.fpn import FeaturePyramid
from medfusion.models.blocks.heads import PooledHead
from medfusion.models.blocks.image_streams import ImageStreams
from medfusion.models.blocks.learned import LearnedTokens, Places
from medfusion.models.blocks.standardized import StandardizedConv2d, standardized
from medfusion.models.blocks.tokens import Memory, StateToken
from medfusion.models.medfusion_net import SIZES


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (8, 1), (29, 1), (32, 4), (96, 4), (256, 32), (512, 32)]
)
def test_group_norm_fits_any_width(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups
    assert norm(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


def test_a_dense_stage_keeps_its_input_and_grows():
    stage = DenseStage(16, layers=3, growth=4, bottleneck=8)
    x = torch.randn(2, 16, 5, 7)
    out = stage(x)
    assert out.shape == (2, stage.channels, 5, 7)
    assert stage.channels == 16 + 3 * 4
    assert torch.equal(out[:, :16], x)


def test_activations_are_out_of_place():
    x = torch.randn(2, 16, 5, 5)
    before = x.clone()
    Transition(20)(DenseLayer(16, 4, 8)(x))
    assert torch.equal(x, before)
    assert not any(getattr(part, "inplace", False) for part in DenseLayer(16, 4, 8).modules())


@pytest.mark.parametrize(("side", "halved"), [(8, 4), (7, 4), (1, 1)])
def test_a_transition_halves_rounding_up(side, halved):
    transition = Transition(40)
    assert transition(torch.randn(1, 40, side, side)).shape == (1, 24, halved, halved)


@pytest.mark.parametrize(
    ("size", "stride"),
    [((16, 16), 1), ((32, 32), 2), ((48, 200), 2), ((64, 64), 4), ((512, 512), 4)],
)
def test_the_stem_leaves_the_last_stage_two_pixels(size, stride):
    assert stem_stride(size) == stride
    out = Stem(3, 16, stride)(torch.randn(1, 3, *size))
    assert out.shape[2:] == tuple(-(-side // stride) for side in size)
    assert min(out.shape[2:]) // 8 >= 2


def test_attention_equals_torchs_with_a_mask():
    attention, heads, width = Attention(12, 3), 3, 12
    query, keys = torch.randn(2, 4, width), torch.randn(2, 6, width)
    keep = torch.rand(2, 6) < 0.5
    keep[:, 0] = True

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    key, value = attention.key_value(keys).chunk(2, dim=-1)
    expected = scaled_dot_product_attention(
        split(attention.query(query)), split(key), split(value), attn_mask=keep[:, None, None]
    )
    expected = attention.out(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(query, keys, keep), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_key_has_no_say_at_all(dtype):
    attention = Attention(8, 2).to(dtype)
    query, keys = torch.randn(1, 3, 8, dtype=dtype), torch.randn(1, 5, 8, dtype=dtype)
    keep = torch.tensor([[True, True, False, True, False]])
    before = attention(query, keys, keep)
    keys[:, [2, 4]] = 1e3
    assert torch.equal(attention(query, keys, keep), before)


def test_the_pyramid_carries_the_coarsest_level_to_the_finest():
    pyramid = FeaturePyramid([6, 8, 10], 4)
    maps = [torch.randn(1, 6, 8, 8), torch.randn(1, 8, 4, 4), torch.randn(1, 10, 2, 2)]
    before = pyramid(maps)
    assert [level.shape[1:] for level in before] == [(4, 8, 8), (4, 4, 4), (4, 2, 2)]
    maps[2] = maps[2].clone()
    maps[2][:, :, 0, 0] += 1.0  # the upper left quarter
    moved = (pyramid(maps)[0] - before[0]).abs().amax(dim=(0, 1)) > 0
    assert moved[:4, :4].all()
    assert not moved[5:, 5:].any()  # beyond the 3 x 3 smoothing
    maps[0] = maps[0] + 1.0
    assert torch.equal(pyramid(maps)[2], pyramid([torch.zeros_like(maps[0]), *maps[1:]])[2])


def test_a_share_is_the_weight_that_a_token_starts_with():
    torch.manual_seed(0)
    attention, tokens = Attention(4, 2), torch.randn(3, 5, 4)
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.query.bias.zero_()  # every key scores the same
    share = torch.tensor([1.0, 0.5, 0.5, 0.25, 0.25])
    values = attention.key_value(tokens).chunk(2, dim=-1)[1]
    expected = attention.out((values * share[:, None]).sum(dim=1, keepdim=True) / 2.5)
    found = attention(torch.randn(3, 1, 4), tokens, None, None, share.log())
    torch.testing.assert_close(found, expected)
    head = PooledHead(4, labels=2, memories=1)
    keep = torch.tensor([[True, True, True, False, True]]).expand(3, -1)
    _, (mean,) = head([Memory(tokens, keep, log_share=share.log())])
    kept = tokens * (share * keep)[..., None]
    torch.testing.assert_close(mean, kept.sum(dim=1) / 2.25)


def test_each_level_of_tokens_starts_with_the_same_share():
    streams = ImageStreams(
        1, (64, 64), SIZES["tiny"].streams, attention_stream=True, exchange=True, fpn=True
    )
    weights = streams.log_share.exp()
    assert len(weights) == streams(torch.zeros(1, 1, 64, 64)).shape[1]
    counts = torch.unique_consecutive(streams.places.ids[0], return_counts=True)[1]
    for level in weights.split(counts.tolist()):
        assert level.sum() == pytest.approx(1.0, abs=1e-6)


def test_standardized_weights_have_mean_0_and_norm_1_in_each_output_channel():
    torch.manual_seed(0)
    layer = StandardizedConv2d(3, 4, 3, bias=False)
    used = standardized(7.0 + 5.0 * layer.weight)
    torch.testing.assert_close(used.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(used.square().sum(dim=(1, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)
    x = torch.randn(2, 3, 8, 8)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(5.0).add_(2.0)
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        standardized(torch.ones(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3)
    )  # nothing to divide by


def test_tokens_return_to_their_place_on_the_map():
    to_map = TokensToMap(3, 4, (2, 2))
    assert 0 < to_map(torch.randn(1, 4, 4), (6, 6)).abs().max() < 0.3  # all but silent at first
    torch.nn.init.normal_(to_map.project.weight)
    tokens = torch.randn(1, 4, 4)
    before = to_map(tokens, (6, 6))
    tokens[:, 1] = torch.randn(4)  # row 0, column 1
    moved = (to_map(tokens, (6, 6)) - before).abs().amax(dim=(0, 1)) > 0
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:3, 3:] = True
    assert torch.equal(moved, expected)


def test_pooling_to_the_same_size_changes_nothing():
    x = torch.randn(1, 2, 4, 4)
    assert pool_to(x, (4, 4)) is x
    torch.testing.assert_close(pool_to(x, (1, 1)).flatten(), x.mean(dim=(2, 3)).flatten())


def test_learned_tokens_are_the_same_for_every_sample():
    tokens = LearnedTokens(3, 4, scale=1.0)
    found = tokens(torch.zeros(5, 2))
    assert found.shape == (5, 3, 4)
    assert torch.equal(found, tokens.table.weight.expand(5, 3, 4))


def test_places_agree_between_levels_that_see_the_same_part():
    places = Places([(4, 4), (2, 2)], 6)
    with torch.no_grad():
        places.level.weight.zero_()
    fine, coarse = places(torch.zeros(1, 1)).split([16, 4], dim=1)
    # step 0 of 8 is row 0 and column 0 of both; step 4 is row 2 of the fine, row 1 of the coarse
    torch.testing.assert_close(fine[0, 0], coarse[0, 0])
    torch.testing.assert_close(fine[0, 2 * 4 + 2], coarse[0, 3])
    assert not torch.allclose(fine[0, 1], fine[0, 4])  # rows and columns differ


def test_the_state_token_tells_present_from_absent_and_masks_the_rest():
    state = StateToken(4)
    keep = torch.tensor([[True, False], [True, True]])
    memory = state(torch.randn(2, 2, 4), keep, torch.tensor([True, False]))
    assert memory.keep.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(memory.tokens[:, 0], state.table.weight[[1, 0]])


def test_parameters_live_in_leaf_layers_only():
    for part in (Attention(8, 2), StateToken(4), Places([(2, 2)], 4), LearnedTokens(2, 3, scale=1)):
        owners = [m for m in part.modules() if list(m.parameters(recurse=False))]
        assert all(isinstance(m, nn.Linear | nn.Embedding) for m in owners)
