"""Exact samples of the discrete Gaussian on the integers [1]_, from the words of a keystream.

``N_Z(sigma)`` takes each integer x with probability proportional to exp(-x^2 / (2 sigma^2)).
Its samples are integers made by integer arithmetic, so no bit of them tells how they were made;
the lowest bits of a floating-point Gaussian sample do [2]_.

*Narrow* (`NarrowGaussian`): inversion. The cumulative probabilities of |x| up to 13 sigma are
computed in 192-bit fixed point and kept to 127 bits; 63 bits of a word are compared with them,
another bit is the sign, and where the 63 bits meet a boundary's, 64 further bits decide.

*Wide* (`discrete_gaussian`): ``factor * x1 + x2`` with both from N_Z(s), s = 4096. Completing
the square, the probability of x is that of N_Z(S), S^2 = s^2 (factor^2 + 1), times the sum of
exp(-(z - c)^2 / (2 t^2)) over the integers z, with t^2 = s^2 / (factor^2 + 1) and some c. By
Poisson summation this sum is t sqrt(2 pi) to within a factor of 1 +- 2 exp(-2 pi^2 t^2) whatever
c is [3]_. Factors up to 2048 keep t at 2 within 1e-6, and that is 1 +- 2^-112.

Total variation distance of a wide sample from N_Z(S): 2^-111 for the tails and the rounded
boundaries of each narrow one, 2^-112 for their sum; together below 2^-109 a coordinate, and
below 2^-69 for 10^12 coordinates, which a delta of 2^-69 pays for.

References
----------
.. [1] Canonne, Kamath and Steinke, "The discrete Gaussian for differential privacy", 2020.
.. [2] Mironov, "On significance of the least significant bits for differential privacy", 2012.
.. [3] Micciancio and Walter, "Gaussian sampling over the integers: efficient, generic,
   constant-time", 2017, lemma 2.
"""

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from medfusion.privacy.keystream import Keystream

NARROW_SIGMA = 4096
LARGEST_FACTOR = 2048

_REACH = 13  # in sigmas; N_Z has less than 2 ** -126 beyond
_FIXED_POINT = 192
_DIGITS = 80  # more than 192 bits
_BOUNDARY_BITS = 127
_LOW_BITS = 64
_CELL_BITS = 16
_CELL_SHIFT = _BOUNDARY_BITS - _LOW_BITS - _CELL_BITS
_BLOCK = 16384  # coordinates at a time, so that what is in between stays in a core's cache


def discrete_gaussian(keystream: Keystream, count: int, *, factor: int) -> NDArray[np.int64]:
    """Return int64 [count], independent samples of N_Z(S), S^2 = 4096^2 (factor^2 + 1).

    Raises
    ------
    ValueError
        If ``factor`` is below 1 or above 2048.
    """
    if not 1 <= factor <= LARGEST_FACTOR:
        raise ValueError(f"Expected 1 <= factor={factor} <= {LARGEST_FACTOR}.")
    narrow = narrow_gaussian(NARROW_SIGMA)
    samples = np.empty(count, dtype=np.int64)
    for start in range(0, count, _BLOCK):
        block = samples[start : start + _BLOCK]
        pairs = narrow.draw(keystream, 2 * len(block))
        np.multiply(pairs[: len(block)], factor, out=block)
        block += pairs[len(block) :]
    return samples


class NarrowGaussian:
    """N_Z(sigma) by inversion of its table of 13 sigma boundaries; see the module.

    A guide of 2^16 cells gives, for the first 16 bits, the number of boundaries below the cell.
    A cell holds one boundary at most except in the tails, which are searched.

    Parameters
    ----------
    sigma
        1 to 4096.
    """

    def __init__(self, sigma: int) -> None:
        exact = boundaries(sigma)
        self._high = np.array([bound >> _LOW_BITS for bound in exact], dtype=np.int64)
        self._low = np.array([bound % 2**_LOW_BITS for bound in exact], dtype=np.uint64)
        edges = np.arange(2**_CELL_BITS, dtype=np.int64) << _CELL_SHIFT
        self._below = np.searchsorted(self._high, edges)
        inside = np.diff(self._below, append=len(exact))
        self._tail = int(np.argmax(inside > 1))
        # Behind the last boundary there is none to meet.
        self._padded = np.append(self._high, np.iinfo(np.int64).max)

    def draw(self, keystream: Keystream, count: int) -> NDArray[np.int64]:
        """Return int64 [count], independent samples; takes ``count`` words, and one a tie."""
        words = keystream.words(count)
        drawn = (words >> np.uint64(1)).view(np.int64)
        cells = drawn >> _CELL_SHIFT
        sizes = self._below[cells]
        nearest = self._padded[sizes]
        tied = nearest == drawn
        sizes += nearest <= drawn
        tail = np.flatnonzero(cells >= self._tail)
        sizes[tail] = np.searchsorted(self._high, drawn[tail], side="right")
        tied[tail] = self._padded[sizes[tail] - 1] == drawn[tail]
        for place in np.flatnonzero(tied):
            sizes[place] = self._resolve(drawn[place], keystream)
        signs = -(words & np.uint64(1)).view(np.int64)
        signed: NDArray[np.int64] = (sizes ^ signs) - signs
        return signed

    def _resolve(self, drawn: np.int64, keystream: Keystream) -> int:
        """Return the size for 63 bits that are those of a boundary, by 64 further bits."""
        first = int(np.searchsorted(self._high, drawn, side="left"))
        last = int(np.searchsorted(self._high, drawn, side="right"))
        more = keystream.words(1)[0]
        return first + int(np.searchsorted(self._low[first:last], more, side="right"))


@cache
def narrow_gaussian(sigma: int) -> NarrowGaussian:
    """Return the sampler of N_Z(sigma), whose table is computed once a process."""
    return NarrowGaussian(sigma)


def boundaries(sigma: int) -> list[int]:
    """Return floor(2^127 P(abs(x) <= m)) under N_Z(sigma), for m = 0 to 13 sigma - 1.

    P is conditional on abs(x) <= 13 sigma. Fixed point errs by less than 2^-150, since each of
    13 sigma products is off by a unit of 2^-192.
    """
    with localcontext(prec=_DIGITS):
        step = int((Decimal(-1) / (2 * sigma**2)).exp() * 2**_FIXED_POINT)
        faster = int((Decimal(-1) / sigma**2).exp() * 2**_FIXED_POINT)
    # exp(-(m + 1)^2 / 2 sigma^2) is exp(-m^2 / 2 sigma^2) times the step, which shrinks as well.
    weight = total = 2**_FIXED_POINT
    sums = [total]
    for _ in range(_REACH * sigma):
        weight = weight * step >> _FIXED_POINT
        step = step * faster >> _FIXED_POINT
        total += 2 * weight
        sums.append(total)
    return [(part << _BOUNDARY_BITS) // total for part in sums[:-1]]
