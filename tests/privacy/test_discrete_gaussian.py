"""The discrete Gaussian against its definition, computed another way."""

from bisect import bisect_right
from decimal import Decimal, localcontext
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
from scipy.special import chdtrc, ndtr

from medfusion.privacy.discrete_gaussian import (
    LARGEST_FACTOR,
    NARROW_SIGMA,
    NarrowGaussian,
    boundaries,
    discrete_gaussian,
    narrow_gaussian,
)
from medfusion.privacy.keystream import Keystream

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
SECRET = bytes(range(32))


def exact_pmf(variance: int, reach: int) -> list[Decimal]:
    """P(x) for x = 0 to reach: each weight by itself, the sum of all by Poisson summation."""
    with localcontext(prec=70):
        weights = [(Decimal(-x * x) / (2 * variance)).exp() for x in range(reach + 1)]
        terms = sum((-2 * PI**2 * variance * k * k).exp() for k in range(1, 9))
        total = (2 * PI * variance).sqrt() * (1 + 2 * terms)
        return [weight / total for weight in weights]


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-square test."""
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return float(chdtrc(len(observed) - 1, statistic))


@pytest.mark.parametrize(("sigma", "reach"), [(1, 12), (2, 25), (7, 90), (4096, 150)])
def test_boundaries_are_those_of_the_definition(sigma: int, reach: int) -> None:
    with localcontext(prec=70):
        pmf = exact_pmf(sigma**2, reach)
        for m, found in enumerate(boundaries(sigma)[: reach + 1]):
            expected = pmf[0] + 2 * sum(pmf[1 : m + 1])
            # Rounded down, and conditional on 13 sigma, beyond which less than 2^-126 lies.
            assert abs(found - expected * 2**127) < 3, m


def test_boundaries_reach_the_end_of_the_tails() -> None:
    for sigma in (1, 5):
        found = boundaries(sigma)
        assert len(found) == 13 * sigma
        assert found == sorted(found)
        with localcontext(prec=70):
            last = exact_pmf(sigma**2, 13 * sigma)[-1]
            assert abs(2**127 - found[-1] - 2 * last * 2**127) < 3


class Scripted:
    """Gives the words that it was made of, in order."""

    def __init__(self, *words: int) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self.left = self.left[:count], self.left[count:]
        return np.array(taken, dtype=np.uint64)


@pytest.mark.parametrize("sigma", [1, 3, 60, 4096])
def test_every_word_gives_what_exact_integers_give(sigma: int) -> None:
    """Words everywhere, and right at boundaries, with a second word on either side of them."""
    exact = boundaries(sigma)
    rng = np.random.default_rng(0)
    some = {*range(0, len(exact), 1 + len(exact) // 200), *range(len(exact) - 8, len(exact))}
    near = {exact[m] + change for m in some for change in (-(2**64), -1, 0, 1, 2**64)}
    near |= {0, 2**127 - 1, *(int(u) << 64 for u in rng.integers(0, 2**63, 3000))}
    near |= {edge << 111 for edge in range(0, 2**16, 500)}
    drawn = sorted(u for u in near if 0 <= u < 2**127)
    signs = rng.integers(0, 2, len(drawn)).tolist()
    high = {bound >> 64 for bound in exact}
    second = [u % 2**64 for u in drawn if u >> 64 in high]
    assert len(second) > 8
    script = Scripted(
        *((u >> 64 << 1) + sign for u, sign in zip(drawn, signs, strict=True)), *second
    )
    found = NarrowGaussian(sigma).draw(script, len(drawn)).tolist()
    assert not script.left
    # Where no boundary has the same 63 bits the second word is never asked for.
    expected = [bisect_right(exact, u) for u in drawn]
    assert found == [-m if sign else m for m, sign in zip(expected, signs, strict=True)]
    assert max(expected) == 13 * sigma


def test_small_samples_have_the_exact_frequencies() -> None:
    sigma, draws, reach = 3, 100_000, 11
    samples = NarrowGaussian(sigma).draw(Keystream(SECRET, "chi"), draws)
    half = [float(p) for p in exact_pmf(sigma**2, reach)]
    inner = np.array([*half[:0:-1], *half])
    counts = np.bincount(samples[np.abs(samples) <= reach] + reach, minlength=2 * reach + 1)
    observed = np.append(counts, draws - counts.sum())
    expected = np.append(inner, 1 - inner.sum()) * draws
    assert p_value(observed, expected) > 1e-3


@pytest.mark.parametrize("factor", [1, 1500, LARGEST_FACTOR])
def test_wide_samples_have_the_frequencies_of_their_width(factor: int) -> None:
    draws, bins = 100_000, 100
    samples = discrete_gaussian(Keystream(SECRET, "wide", factor), draws, factor=factor)
    assert samples.dtype == np.int64
    places = ndtr((samples + 0.5) / (NARROW_SIGMA * sqrt(factor**2 + 1)))
    for values in (places, (places[:-1] + places[1:]) % 1):  # neighbours are independent
        counts = np.bincount((values * bins).astype(int), minlength=bins)
        assert p_value(counts, np.full(bins, len(values) / bins)) > 1e-3
    lowest = np.bincount((samples % 16).astype(int), minlength=16)
    assert p_value(lowest, np.full(16, draws / 16)) > 1e-3


def masses(sigma: int) -> list[int]:
    """P(x) under the table, over 2^128, for x = -13 sigma to 13 sigma."""
    sums = [0, *boundaries(sigma), 2**127]
    half = [after - before for before, after in pairwise(sums)]
    return [*half[:0:-1], 2 * half[0], *half[1:]]


def distance_of_the_sum(sigma: int, factor: int) -> Decimal:
    """Total variation distance of factor * x1 + x2 from the discrete Gaussian of its width."""
    narrow, reach = masses(sigma), 13 * sigma
    found = [0] * (2 * reach * (factor + 1) + 1)
    for i, one in enumerate(narrow):
        for j, other in enumerate(narrow):
            found[i * factor + j] += one * other
    assert sum(found) == 2**256
    middle = reach * (factor + 1)
    expected = exact_pmf(sigma**2 * (factor**2 + 1), middle)
    with localcontext(prec=90):
        unit = Decimal(2**256)
        return sum(abs(p / unit - expected[abs(i - middle)]) for i, p in enumerate(found)) / 2


def test_sums_are_discrete_gaussians_of_their_width() -> None:
    """With t = 2 up to 3%, as at full size: 2 exp(-2 pi^2 t^2) and what tables leave out."""
    assert distance_of_the_sum(8, 4) < Decimal(2) ** -105
    assert distance_of_the_sum(4, 1) < Decimal(2) ** -109
    assert distance_of_the_sum(4, 4) > Decimal(2) ** -40  # t = 1 is too small


def test_full_size_smooths_as_the_module_says() -> None:
    with localcontext(prec=40):
        t_squared = Decimal(NARROW_SIGMA**2) / (LARGEST_FACTOR**2 + 1)
        assert 2 * (-2 * PI**2 * t_squared).exp() < Decimal(2) ** -112


def test_frozen_samples() -> None:
    found = discrete_gaussian(Keystream(SECRET, "known answer"), 6, factor=2048)
    assert found.tolist() == [-2170662, -1860409, -15434967, -8421248, -9130767, 4290081]


def test_samples_come_in_blocks_and_each_is_new() -> None:
    stream = Keystream(SECRET, "blocks")
    samples = discrete_gaussian(stream, 40_000, factor=2048)
    assert np.array_equal(
        samples[:16384], discrete_gaussian(Keystream(SECRET, "blocks"), 16384, factor=2048)
    )
    following = discrete_gaussian(stream, 40_000, factor=2048)
    pairs = (
        (samples, following),
        (samples[:20_000], samples[20_000:]),
        (samples[1:], samples[:-1]),
    )
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / sqrt(len(one))
    assert not discrete_gaussian(stream, 0, factor=1).size


@pytest.mark.parametrize("factor", [-1, 0, 2049])
def test_factors_that_smooth_too_little_are_refused(factor: int) -> None:
    with pytest.raises(ValueError, match="2048"):
        discrete_gaussian(Keystream(SECRET), 1, factor=factor)


def test_the_table_is_computed_once() -> None:
    assert narrow_gaussian(NARROW_SIGMA) is narrow_gaussian(NARROW_SIGMA)
