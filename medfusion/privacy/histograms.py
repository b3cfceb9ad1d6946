"""Histograms that may leave a site."""

import numpy as np
import torch
from numpy.typing import NDArray


def noised(
    histogram: NDArray[np.int64] | NDArray[np.float64],
    *,
    sensitivity: float,
    noise_multiplier: float,
    generator: torch.Generator,
) -> NDArray[np.float64]:
    """Return the histogram with Gaussian noise on every cell, empty ones included.

    With the noise multiplier of a `medfusion.privacy.plan.DpPlan`, the result is the release
    that the plan accounts for.

    Parameters
    ----------
    histogram
        Counts, of any shape.
    sensitivity
        L2 norm of the most that one patient adds to the whole array.
    noise_multiplier
        Standard deviation of the noise over ``sensitivity``.
    generator
        A private CPU generator: whoever knows its seed can subtract the noise.

    Raises
    ------
    ValueError
        If ``sensitivity`` or ``noise_multiplier`` is not positive.
    """
    if not sensitivity > 0 or not noise_multiplier > 0:
        raise ValueError("Expected sensitivity > 0 and noise_multiplier > 0.")
    noise = torch.randn(histogram.shape, dtype=torch.float64, generator=generator).numpy()
    return histogram.astype(np.float64) + sensitivity * noise_multiplier * noise
