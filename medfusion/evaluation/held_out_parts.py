"""What a release of held-out patients counts: tests, in the end calibration and subgroups too.

A release is one array. Until the last round it is a release of `Measures`, of the test part. That
of the last round stacks several, [2 + G, ...]: of the test part, of the calibration part, and of
the G subgroups of the test part. All of it is noised as one mechanism.

A patient is in one part of the split. In the test part he or she adds one study to the whole and to
at most one group of each of A attributes, at most sqrt(1 + A) times what one release's sensitivity
is, in the L2 norm; in the calibration part once. So the calibration part costs no privacy, and each
attribute costs accuracy by the noise that its groups need, at the same epsilon.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfusion.data.split import CALIBRATION, TEST
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.metrics import FloatArray
from medfusion.evaluation.subgroups import Attribute


@dataclass(frozen=True)
class HeldOut:
    """What the release after one round counts.

    Attributes
    ----------
    parts
        Parts of the split.
    attributes
        What the test patients are grouped by.
    """

    parts: tuple[int, ...]
    attributes: tuple[Attribute, ...] = ()

    @property
    def groups(self) -> int:
        """G, over all attributes."""
        return sum(len(attribute.groups) for attribute in self.attributes)

    def shape(self, measures: Measures, *, noised: bool) -> tuple[int, ...]:
        """Return the shape of the array."""
        shape = measures.release_shape(noised=noised)
        return shape if len(self.parts) == 1 else (len(self.parts) + self.groups, *shape)

    def sensitivity(self, measures: Measures) -> float:
        """Return the most that one patient adds to the array, in the L2 norm."""
        return measures.sensitivity * math.sqrt(1 + len(self.attributes))

    def join(self, releases: Sequence[FloatArray]) -> FloatArray:
        """Return releases of the parts, then of the groups, as one array."""
        return releases[0] if len(self.parts) == 1 else np.stack(releases)

    def split(self, array: NDArray[np.float64]) -> tuple[dict[int, FloatArray], FloatArray]:
        """Return the release of each part, and those of the groups [G, ...]."""
        if len(self.parts) == 1:
            return {self.parts[0]: array}, array[:0]
        count = len(self.parts)
        return dict(zip(self.parts, array, strict=False)), array[count:]


def held_out_of(number: int, *, rounds: int, attributes: tuple[Attribute, ...] = ()) -> HeldOut:
    """Return what the release after a round counts; that of the last one counts everything."""
    return HeldOut((TEST, CALIBRATION), attributes) if number == rounds else HeldOut((TEST,))
