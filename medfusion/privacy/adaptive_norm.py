"""A clipping norm that follows a quantile of the patients' gradient norms, privately [1]_.

With each step's noised sum of clipped gradients goes a noised count of the patients whose
gradient was not clipped. The norm C then moves, by a factor, to where the share of such patients
is the quantile asked for. Both releases together cost what a step with the plan's noise
multiplier costs, so that the accounting of a run stays as it is.

A patient adds 1/2 to the count if their gradient is at most C long, else takes 1/2 from it; one
who was not drawn adds nothing. So the count's sensitivity is 1/2, whatever C is, and dividing by
the *expected* batch keeps the drawn number out of it.

The norm begins each round at the plan's ``max_grad_norm``: a round is then a function of the
model that came in, as its replay and the charge for it require, and the site carries nothing
from one round to the next but its ledger. It needs rounds of several steps.

References
----------
.. [1] Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021,
   arXiv 1905.03871.
"""

from math import exp, sqrt

import numpy as np
from torch import Tensor

from medfusion.privacy.gaussian_noise import noised
from medfusion.privacy.keystream import Keystream

RATE = 0.2  # of the change of log C by a step; the paper's
_COUNT_SHARE = 1 / 16  # of a step's privacy, in terms of 1 / noise_multiplier ** 2
_SENSITIVITY = 0.5  # of the count


def split_noise(noise_multiplier: float) -> tuple[float, float]:
    """Return noise multipliers of the gradient and of the count that together cost the given one.

    A Gaussian release with noise z times its sensitivity is one of a vector that is scaled to
    noise 1 and moves by 1/z. Two of them, made of the same draw of patients, move by the root of
    the sum of squares [1]_, theorem 1: ``z ** -2 = z_gradient ** -2 + z_count ** -2``.
    """
    gradient = noise_multiplier / sqrt(1 - _COUNT_SHARE)
    return gradient, noise_multiplier / sqrt(_COUNT_SHARE)


class AdaptiveNorm:
    """The clipping norm during one round.

    Parameters
    ----------
    start
        C before the first step.
    quantile
        Share of patients whose gradients are to stay as they are.
    count_noise
        Standard deviation of the noise on the count over its sensitivity.
    expected_batch
        Patients expected in a step.
    keystream
        For the noise of these counts alone.
    """

    def __init__(
        self,
        start: float,
        *,
        quantile: float,
        count_noise: float,
        expected_batch: float,
        keystream: Keystream,
    ) -> None:
        self.value = start
        self._quantile = quantile
        self._noise = count_noise
        self._expected_batch = expected_batch
        self._keystream = keystream
        self._count = 0.0

    def observe(self, norms: Tensor) -> None:
        """Count a chunk's gradient norms [b], before clipping; one not finite counts as long."""
        short = int((norms <= self.value).sum())
        self._count += _SENSITIVITY * (2 * short - len(norms))

    def move(self) -> None:
        """Release the count of a step, and set the norm for the next one.

        A share that the noise carries out of [0, 1] is set to the nearer end, so that one step
        changes C by a factor of ``exp(RATE)`` at most.
        """
        count = noised(
            np.array([self._count]),
            sensitivity=_SENSITIVITY,
            noise_multiplier=self._noise,
            keystream=self._keystream,
        )
        share = 0.5 + float(count[0]) / self._expected_batch
        self._count = 0.0
        self.value *= exp(-RATE * (min(max(share, 0.0), 1.0) - self._quantile))
