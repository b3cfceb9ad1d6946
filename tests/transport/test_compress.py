"""What compression keeps, what it costs, and what it refuses to read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.errors import ConfigError, FederationError
from medfusion.transport.compress import Codec
from medfusion.transport.compression_options import CompressionOptions

LEVELS = ("none", "bfloat16", "int8", "int4", "topk")


def codec_of(level, size, fraction=0.1):
    options = {"fraction": fraction} if level == "topk" else {}
    return Codec.of(CompressionOptions(level=level, **options), size)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def update_like(size, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=size) * rng.choice([1e-4, 1.0], size=size)).astype(np.float32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1001])
def test_the_bytes_are_those_that_travel(level, size):
    codec = codec_of(level, size)
    packed = codec.pack(update_like(size), draws())
    assert sum(array.nbytes for array in packed.values()) == codec.bytes
    read = codec.unpack(packed)
    assert (read.shape, read.dtype) == ((size,), np.float32)


@given(st.integers(1, 700), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_errors_are_bounded(size, seed):
    update = update_like(size, seed)
    error = {
        level: np.abs(
            codec_of(level, size).unpack(codec_of(level, size).pack(update, draws(seed))) - update
        )
        for level in LEVELS
    }
    assert not error["none"].any()
    assert (error["bfloat16"] <= np.abs(update) * 2.0**-8).all()
    for level, steps in (("int8", 127), ("int4", 7)):
        for start in range(0, size, 256):
            block = slice(start, start + 256)
            step = np.abs(update[block]).max() / steps
            assert (error[level][block] <= step * (1 + 1e-5)).all()
    sent = max(1, round(0.1 * size))
    order = np.argsort(-np.abs(update), kind="stable")
    assert (error["topk"][order[:sent]] <= np.abs(update[order[:sent]]) * 2.0**-8).all()
    np.testing.assert_array_equal(error["topk"][order[sent:]], np.abs(update[order[sent:]]))


@pytest.mark.parametrize("level", ["int8", "int4"])
def test_random_rounding_is_right_in_the_mean(level):
    update = update_like(300)
    codec, total, tries = codec_of(level, 300), np.zeros(300), 2000
    generator = draws()
    for _ in range(tries):
        total += codec.unpack(codec.pack(update, generator))
    step = np.abs(update).max() / {"int8": 127, "int4": 7}[level]
    # A rounding moves an entry by a deviation of half a step at most.
    assert np.abs(total / tries - update).max() < 5 * step / 2 / np.sqrt(tries)


@pytest.mark.parametrize("level", ["int4", "topk"])
def test_what_is_lost_in_one_round_comes_with_later_ones(level):
    """The sum of what was read lags the sum of updates by what the last round lost, no more."""
    codec, lost, read = codec_of(level, 400), np.zeros(400, np.float32), np.zeros(400)
    steady = update_like(400)
    for number in range(1, 101):
        with_lost = steady + lost
        got = codec.unpack(codec.pack(with_lost, draws(number)))
        lost, read = with_lost - got, read + got
        np.testing.assert_allclose(read + lost, number * steady.astype(float), atol=1e-2)
    assert np.linalg.norm(read / 100 - steady) < 0.2 * np.linalg.norm(steady)
    if level == "topk":  # without feedback the small ones are never sent
        once = codec.unpack(codec.pack(steady, draws()))
        assert np.linalg.norm(once - steady) > np.linalg.norm(read / 100 - steady)


def test_a_budget_chooses_the_finest_level_that_fits():
    size = 10_000
    chosen = {
        budget: Codec.of(CompressionOptions(byte_budget=budget), size)
        for budget in (40_000, 39_999, 20_000, 19_999, 10_160, 10_159, 5_160, 5_159, 600)
    }
    levels = [codec.level for codec in chosen.values()]
    assert levels == [
        *("none", "bfloat16", "bfloat16", "int8", "int8", "int4", "int4", "topk", "topk")
    ]
    assert all(codec.bytes <= budget for budget, codec in chosen.items())
    assert chosen[600].kept == 100


@pytest.mark.parametrize("level", ["bfloat16", "int8", "int4", "topk"])
def test_damaged_arrays_are_refused(level):
    codec = codec_of(level, 300)
    packed = codec.pack(update_like(300), draws())
    for name in packed:
        for wrong in (packed[name][:-1], packed[name].astype(np.float64)):
            with pytest.raises(FederationError, match="expected other arrays"):
                codec.unpack({**packed, name: wrong})
    with pytest.raises(FederationError, match="expected other arrays"):
        codec.unpack({**packed, "more": packed["values"]})


@pytest.mark.parametrize("places", [[5, 5], [7, 3], [3, 300]])
def test_places_that_do_not_rise_or_are_beyond_are_refused(places):
    codec = Codec("topk", 300, 2)
    arrays = {"index": np.array(places, np.uint32), "values": np.zeros(2, np.uint16)}
    with pytest.raises(FederationError, match="rising places"):
        codec.unpack(arrays)


@pytest.mark.parametrize("level", ["bfloat16", "int8", "int4", "topk"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_at_the_other_end(level, bad):
    update = update_like(300)
    update[7] = bad
    codec = codec_of(level, 300)
    with np.errstate(invalid="ignore"):
        read = codec.unpack(codec.pack(update, draws()))
    assert not np.isfinite(read).all()


def test_a_budget_and_a_level_exclude_each_other():
    with pytest.raises(ConfigError, match="expected one of byte_budget and level"):
        CompressionOptions.parse({"byte_budget": 100, "level": "int8"}, where="[compression]")
