"""Which parts of the split a site releases figures of: the test part, in the end also calibration.

A release of P parts is P releases of `Measures` in one array [P, ...], noised as one mechanism. A
patient is in one part, adds one study to it and nothing to the others, so the L2 sensitivity of the
array to a patient is that of a single release: the second part costs no privacy.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medfusion.data.split import CALIBRATION, TEST
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.metrics import FloatArray


def held_out_parts(number: int, *, rounds: int) -> tuple[int, ...]:
    """Return the parts that are released after a round; the model of the last one is calibrated."""
    return (TEST, CALIBRATION) if number == rounds else (TEST,)


def parts_shape(measures: Measures, parts: Sequence[int], *, noised: bool) -> tuple[int, ...]:
    """Return the shape of a release of parts; that of one part has no axis for it."""
    shape = measures.release_shape(noised=noised)
    return shape if len(parts) == 1 else (len(parts), *shape)


def join_parts(releases: Sequence[FloatArray]) -> FloatArray:
    """Return the releases of disjoint parts, in order, as one array of `parts_shape`."""
    return releases[0] if len(releases) == 1 else np.stack(releases)


def split_parts(release: NDArray[np.float64], parts: Sequence[int]) -> dict[int, FloatArray]:
    """Return the release of each part in an array of `parts_shape`."""
    return dict(zip(parts, [release] if len(parts) == 1 else release, strict=True))
