"""From the values of one image or volume to eight bits; nothing is learned from other patients."""

import numpy as np
from numpy.typing import NDArray

from medfusion.errors import DataError

Floats = NDArray[np.float32]

_PERCENTILES = (0.5, 99.5)
_TINY = 1e-30  # what has one value only is black


def to_255(values: Floats, window: tuple[float, float] | None) -> Floats:
    """Bring the window, or the range between two percentiles of ``values``, to 0 to 255.

    What is not finite becomes 0 and does not count in the percentiles.

    Raises
    ------
    DataError
        If no value is finite.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise DataError("an image or a volume holds no finite value")
    ends = np.percentile(values[finite], _PERCENTILES) if window is None else window
    low, high = (float(end) for end in ends)
    share = (np.where(finite, values, low) - low) / max(high - low, _TINY)
    found: Floats = (255.0 * np.clip(share, 0.0, 1.0)).astype(np.float32)
    return found
