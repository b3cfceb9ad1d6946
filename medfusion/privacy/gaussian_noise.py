"""Gaussian noise on what a site releases, on a grid, so that no bit of it gives the value away.

A release is ``g * (rint(values / g) + x)`` with x from the discrete Gaussian
(`medfusion.privacy.discrete_gaussian`) and g a power of two. Dividing by g, rounding and adding
integers are exact in floating point, and what happens to the integer sum afterwards is
post-processing. Floating-point noise added to floating-point values would be neither: which
doubles can come out depends on the value that went in [1]_.

Sensitivity
    Rounding moves two values apart by less than a unit of the grid, so two inputs at an L2
    distance of D are at most ``D / g + sqrt(d)`` units apart, d being the number of values.
    The noise is sized for this sum. That costs 0.03% of noise at a multiplier of 1 and 10^6
    values; counts pay it as well, which is less than a second way of choosing g would gain.
Accounting
    A plan's epsilon is that of the continuous Gaussian mechanism, for steps on Poisson samples,
    adaptively composed. It holds here because the release is a randomised function of such a
    mechanism: add N(0, S^2 - 4), then move to an integer with probabilities proportional to
    exp(-distance^2 / 8). By the argument of `discrete_gaussian` what comes out is the release,
    to within a total variation distance of 2^-111 a coordinate. (S^2 - 4 is still above what the
    sensitivity asks for: the grid is chosen by 4096^2 factor^2, S^2 is 4096^2 (factor^2 + 1).)
    The Renyi divergence of discrete Gaussians a whole number of units apart is that of
    continuous ones, or less [2]_.

References
----------
.. [1] Mironov, "On significance of the least significant bits for differential privacy", 2012.
.. [2] Canonne, Kamath and Steinke, "The discrete Gaussian for differential privacy", 2020.
"""

from dataclasses import dataclass
from math import ceil, frexp, ldexp, sqrt

import numpy as np
from numpy.typing import NDArray

from medfusion.privacy.discrete_gaussian import LARGEST_FACTOR, NARROW_SIGMA, discrete_gaussian
from medfusion.privacy.keystream import Keystream

# Above, rounding to the grid would cost as much noise again as the sensitivity asks for.
_LARGEST_ROUNDING = NARROW_SIGMA * LARGEST_FACTOR / 2


@dataclass(frozen=True)
class Grid:
    """Where a release lies and how wide its noise is; see `make_grid`. Public.

    Parameters
    ----------
    spacing
        A power of two, in the unit of the values.
    factor
        The noise has a standard deviation of ``4096 * sqrt(factor**2 + 1) * spacing``.
    """

    spacing: float
    factor: int

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in the unit of the values."""
        return NARROW_SIGMA * sqrt(self.factor**2 + 1) * self.spacing


def make_grid(*, coordinates: int, sensitivity: float, noise_multiplier: float) -> Grid:
    """Return the finest grid whose noise is ``noise_multiplier`` times the rounded sensitivity.

    Noise above that comes to 0.1% at most.

    Raises
    ------
    ValueError
        If ``sensitivity`` or ``noise_multiplier`` is not positive, or if the multiplier times
        the root of ``coordinates`` is above 2^22, where rounding would need as much noise as
        the values themselves.
    """
    if not sensitivity > 0 or not noise_multiplier > 0:
        raise ValueError("Expected sensitivity > 0 and noise_multiplier > 0.")
    rounding = noise_multiplier * sqrt(coordinates)
    if rounding > _LARGEST_ROUNDING:
        raise ValueError(
            f"Expected noise_multiplier={noise_multiplier:g} times the root of "
            f"coordinates={coordinates} to be at most {_LARGEST_ROUNDING:g}."
        )
    target = noise_multiplier * sensitivity
    # One below the largest factor, which leaves room to round the factor up.
    finest = target / (NARROW_SIGMA * (LARGEST_FACTOR - 1) - rounding)
    spacing = ldexp(1.0, frexp(finest)[1])
    return Grid(spacing, ceil((target / spacing + rounding) / NARROW_SIGMA))


def noised(
    values: NDArray[np.float64] | NDArray[np.int64],
    *,
    sensitivity: float,
    noise_multiplier: float,
    keystream: Keystream,
) -> NDArray[np.float64]:
    """Return the values with Gaussian noise on every one of them, zeros included.

    With the noise multiplier of a `medfusion.privacy.plan.DpPlan`, the result is the release
    that the plan accounts for.

    Parameters
    ----------
    values
        Finite, of any shape: everything that the release holds, so that its sensitivity is
        that of the whole.
    sensitivity
        L2 norm of the most that one patient adds to the values, as they are in memory.
    noise_multiplier
        Standard deviation of the noise over ``sensitivity``; what is added is above by what
        rounding costs, and by up to 0.1%.
    keystream
        For this release alone: whoever sees its words can subtract the noise.

    Raises
    ------
    ValueError
        As `make_grid`.
    """
    grid = make_grid(
        coordinates=values.size, sensitivity=sensitivity, noise_multiplier=noise_multiplier
    )
    released = values.astype(np.float64)
    released /= grid.spacing
    np.rint(released, out=released)
    noise = discrete_gaussian(keystream, values.size, factor=grid.factor)
    released += noise.reshape(values.shape)
    released *= grid.spacing
    return released
