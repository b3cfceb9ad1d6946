"""Noise on a grid: its size, what rounding does to the sensitivity, and that it tells nothing."""

from math import floor, frexp, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medfusion.privacy import gaussian_noise
from medfusion.privacy.gaussian_noise import Grid, make_grid, noised
from medfusion.privacy.keystream import Keystream

SECRET = bytes(range(32))
MULTIPLIERS = st.floats(0.1, 1000.0)
SENSITIVITIES = st.floats(1e-6, 1e6)


def test_every_cell_gets_gaussian_noise_of_the_planned_size() -> None:
    counts = np.zeros((5, 2, 20_000), np.int64)
    counts[0] = 7
    released = noised(
        counts, sensitivity=3.0, noise_multiplier=2.0, keystream=Keystream(SECRET, "size")
    )
    noise = released - counts
    cells = noise.size
    assert released.dtype == np.float64
    assert released.shape == counts.shape
    assert abs(noise.mean()) < 4.5 * 6 / sqrt(cells)
    assert abs(noise.std() / 6 - 1) < 1e-3 + 4.5 / sqrt(2 * cells)
    assert abs((np.abs(noise) < 6).mean() - 0.6827) < 0.005
    assert noise[0].std() == pytest.approx(6, rel=0.02)


def test_same_stream_same_release() -> None:
    def release(number: int) -> np.ndarray:
        return noised(
            np.arange(6.0),
            sensitivity=1.0,
            noise_multiplier=1.0,
            keystream=Keystream(SECRET, number),
        )

    assert np.array_equal(release(1), release(1))
    assert not np.array_equal(release(1), release(2))


def test_frozen_release() -> None:
    values = np.array([0.0, 1.0, -2.5])
    keystream = Keystream(SECRET, "known answer")
    found = noised(values, sensitivity=1.0, noise_multiplier=1.0, keystream=keystream)
    assert [value.hex() for value in found.tolist()] == [
        "-0x1.0983200000000p-2",
        "0x1.8d78300000000p-1",
        "-0x1.15d53f0000000p+2",
    ]


@settings(deadline=None, max_examples=50)
@given(
    values=arrays(np.float64, 20, elements=st.floats(-1e9, 1e9)),
    multiplier=MULTIPLIERS,
    sensitivity=SENSITIVITIES,
)
def test_releases_lie_on_the_grid_whatever_the_values(
    values: np.ndarray, multiplier: float, sensitivity: float
) -> None:
    """Zeros and values can come out as the very same doubles."""
    sizes = {"sensitivity": sensitivity, "noise_multiplier": multiplier}
    grid = make_grid(coordinates=20, **sizes)
    released = noised(values, **sizes, keystream=Keystream(SECRET, "grid"))
    empty = noised(np.zeros(20), **sizes, keystream=Keystream(SECRET, "grid"))
    for found in (released, empty):
        assert np.array_equal(np.rint(found / grid.spacing), found / grid.spacing)
    # The noise is the same for both, up to where integers leave the doubles.
    moved = (released - empty) / grid.spacing
    assert np.allclose(moved, np.rint(values / grid.spacing), rtol=2**-50, atol=0)


@settings(deadline=None, max_examples=50)
@given(coordinates=st.integers(1, 10**7), multiplier=MULTIPLIERS, sensitivity=SENSITIVITIES)
def test_grids_are_as_fine_as_the_noise_allows(
    coordinates: int, multiplier: float, sensitivity: float
) -> None:
    grid = make_grid(coordinates=coordinates, sensitivity=sensitivity, noise_multiplier=multiplier)
    assert frexp(grid.spacing)[0] == 0.5  # a power of two
    assert 1024 <= grid.factor <= 2048
    needed = multiplier * (sensitivity + grid.spacing * sqrt(coordinates))
    # What continuous noise of variance S^2 - 4 has, of which the release is a function.
    equal_to = grid.spacing * sqrt(4096**2 * (grid.factor**2 + 1) - 4)
    assert needed * (1 - 1e-12) <= equal_to
    assert equal_to <= grid.sigma <= 1.001 * needed


def no_noise(_: Keystream, count: int, *, factor: int) -> np.ndarray:
    return np.zeros(count, np.int64)


def units_apart(one: np.ndarray, other: np.ndarray, grid: Grid, **sizes: float) -> float:
    """L2 distance of what the noise is added to, in units of the grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian_noise, "discrete_gaussian", no_noise)
        rounded = [noised(v, **sizes, keystream=Keystream(SECRET)) for v in (one, other)]
    return float(np.linalg.norm(rounded[0] - rounded[1])) / grid.spacing


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    coordinates=st.integers(1, 3000),
    multiplier=MULTIPLIERS,
    sensitivity=SENSITIVITIES,
    size=st.floats(0.0, 1e4),
)
def test_noise_covers_what_rounding_adds_to_the_sensitivity(
    seed: int, coordinates: int, multiplier: float, sensitivity: float, size: float
) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"sensitivity": sensitivity, "noise_multiplier": multiplier}
    grid = make_grid(coordinates=coordinates, **sizes)
    values = size * sensitivity * rng.standard_normal(coordinates)
    change = rng.choice([-1.0, 1.0], coordinates) + rng.uniform(0, 3) * rng.random(coordinates)
    other = values + (1 - 1e-9) * sensitivity * change / np.linalg.norm(change)
    assert multiplier * units_apart(values, other, grid, **sizes) <= 4096 * grid.factor


def test_noise_covers_the_worst_that_rounding_can_do() -> None:
    """Every coordinate moves by a hair more than a whole number of units, across a boundary."""
    coordinates, multiplier = 10_000, 100.0

    def grid_of(sensitivity: float) -> Grid:
        return make_grid(
            coordinates=coordinates, sensitivity=sensitivity, noise_multiplier=multiplier
        )

    g = grid_of(1.0).spacing
    steps = floor(1.0 / (g * sqrt(coordinates)))
    sensitivity = g * sqrt(coordinates) * (steps + 1e-3)
    grid = grid_of(sensitivity)
    assert grid.spacing == g
    one = np.full(coordinates, 0.4999 * g)
    other = np.full(coordinates, (0.4999 + steps + 1e-3) * g)
    assert np.linalg.norm(other - one) <= sensitivity * (1 + 1e-9)
    apart = units_apart(one, other, grid, sensitivity=sensitivity, noise_multiplier=multiplier)
    assert apart == pytest.approx((steps + 1) * sqrt(coordinates))
    assert multiplier * apart <= 4096 * grid.factor
    assert multiplier * apart > 4096 * (grid.factor - 1)  # and nothing is wasted on it


def test_noise_is_as_wide_as_the_grid_of_all_values_asks_for() -> None:
    widths: list[int] = []

    def note_width(keystream: Keystream, count: int, *, factor: int) -> np.ndarray:
        widths.append(factor)
        return no_noise(keystream, count, factor=factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian_noise, "discrete_gaussian", note_width)
        sizes = {"sensitivity": 1.0, "noise_multiplier": 100.0}
        noised(np.zeros((100, 100)), **sizes, keystream=Keystream(SECRET))
    assert widths == [make_grid(coordinates=10_000, **sizes).factor]
    assert widths != [make_grid(coordinates=1, **sizes).factor]


@pytest.mark.parametrize(("sensitivity", "multiplier"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_release_without_noise_is_refused(sensitivity: float, multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier > 0"):
        noised(
            np.zeros(3),
            sensitivity=sensitivity,
            noise_multiplier=multiplier,
            keystream=Keystream(SECRET),
        )


def test_noise_that_rounding_would_swamp_is_refused() -> None:
    largest = 4**9  # 1000 * 2^9 is within, with room
    make_grid(coordinates=largest, sensitivity=1.0, noise_multiplier=1000.0)
    with pytest.raises(ValueError, match=r"coordinates=20000000 to be at most 4\.1943e\+06"):
        make_grid(coordinates=20_000_000, sensitivity=1.0, noise_multiplier=1000.0)
