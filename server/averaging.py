"""The running average of the rounds' models.

Averaging the iterates of SGD [1]_ takes out much of what single steps, and the noise of privacy,
leave in the last of them. Of the averages known the exponential one forgets the early rounds.
It reads nothing but models that the coordinator has anyway: under privacy it is
post-processing, which costs nothing, and what a site computes never depends on it, except that
metrics are those of the average.

References
----------
.. [1] Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
   Journal on Control and Optimization 30:838-855, 1992.
"""

import numpy as np
from flwr.app import Array, ArrayRecord


def running_average(
    past: ArrayRecord, model: ArrayRecord, *, ema: float, number: int
) -> ArrayRecord:
    """Return the average of the models of rounds 1 to ``number``, arrays of float32.

    The model of round t counts as ``ema ** (number - t)``; the weights of all rounds are scaled
    to sum to 1 (so the model before the first round has none).

    Parameters
    ----------
    past
        The average after the round before; in round 1 it does not count.
    model
        The model of this round.
    ema
        In [0, 1); 0 returns ``model`` itself.
    number
        Of this round, from 1.
    """
    if ema == 0:
        return model
    share = (1.0 - ema) / (1.0 - ema**number)
    averages = {}
    for name, array in model.items():
        before, now = past[name].numpy().astype(np.float64), array.numpy().astype(np.float64)
        mean = (1.0 - share) * before + share * now
        averages[name] = Array(np.asarray(mean, np.float32))  # numpy makes 0-d arrays scalars
    return ArrayRecord(averages)
