"""Updates as whole numbers modulo 2^32, whose sums cannot overflow.

A site's part of the sum is ``weight * update`` with weights that add up to 1 at most, so that no
sum leaves the range of one update. An entry is a multiple of ``unit``, a power of two; rounding
moves each site's part by half a unit at most.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfusion.errors import FederationError

_MOST_SITES = 2**20


@dataclass(frozen=True)
class FixedPoint:
    """Numbers in [-``reach``, ``reach``]."""

    reach: float

    @property
    def unit(self) -> float:
        """The step between neighbours: 2^-30 of the reach, or up to twice that."""
        return 2.0 ** (math.ceil(math.log2(self.reach)) - 30)

    def encode(self, update: NDArray[np.float64], *, weight: float) -> NDArray[np.uint32]:
        """Return ``weight * update``.

        Raises
        ------
        FederationError
            If the update is not finite or out of reach, or the weight not in [0, 1]. A site then
            sends nothing: nobody could tell from a sum whose part broke it.
        """
        if not 0 <= weight <= 1:
            raise FederationError(f"weight of this site: expected at most 1, found {weight:g}")
        if not (np.abs(update) <= self.reach).all():  # also NaN
            raise FederationError(
                f"the update of this site is not finite, or beyond update_range = {self.reach:g}: "
                "try a lower training.learning_rate, or a larger range"
            )
        whole = np.rint(update * (weight / self.unit)).astype(np.int64)
        return whole.astype(np.uint32)  # modulo 2^32

    def decode(self, total: NDArray[np.uint32], *, sites: int) -> NDArray[np.float64]:
        """Return the sum of the parts of some sites.

        Raises
        ------
        FederationError
            If it is out of reach: masks that do not cancel leave random numbers.
        """
        assert sites <= _MOST_SITES
        whole = total.astype(np.int32).astype(np.float64)
        if (np.abs(whole) > self.reach / self.unit + sites / 2).any():
            raise FederationError("the masked updates do not add up: a site sent wrong shares")
        return whole * self.unit
