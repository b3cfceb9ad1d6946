"""Batches of studies: the patient is what is drawn, and brings one of its studies."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfusion.errors import DataError
from medfusion.privacy.keystream import Keystream


def poisson_batches(
    patients: Tensor, *, sample_rate: float, steps: int, keystream: Keystream
) -> Iterator[Tensor]:
    """Yield ``steps`` batches that each patient enters independently, at ``sample_rate``.

    A drawn patient contributes one of its studies, all equally likely, chosen independently of
    everybody else. Batches differ in size and may be empty; an empty one is a step all the
    same, whose noise must not be left out.

    Parameters
    ----------
    patients
        Int64 [N], each study's patient.
    sample_rate
        Probability with which a patient enters a batch, 0 < sample_rate <= 1; taken down to
        the next multiple of 2^-64.
    keystream
        Private: knowing who was drawn undoes amplification by sampling.

    Yields
    ------
    Tensor
        Int64 [b], indices of studies, ordered by patient.
    """
    studies = _StudiesByPatient(patients)
    draws, choices = keystream.child("draws"), keystream.child("choices")
    for _ in range(steps):
        drawn = torch.from_numpy(_below(draws.words(studies.patients), sample_rate))
        # For all, so that a choice hangs on nobody's draw.
        shares = (choices.words(studies.patients) >> np.uint64(11)) * 2.0**-53
        yield studies.choose(torch.from_numpy(shares))[drawn]


def epoch_batches(
    patients: Tensor, *, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield ``steps`` batches from passes over shuffled patients, one study of each per pass.

    The last batch of a pass holds what is left; the next pass shuffles and chooses anew.

    Parameters
    ----------
    patients
        Int64 [N], each study's patient.

    Yields
    ------
    Tensor
        Int64 [b], indices of studies, 1 <= b <= ``batch_size``.

    Raises
    ------
    DataError
        If there are no studies.
    """
    studies = _StudiesByPatient(patients)
    if not studies.patients:
        raise DataError("expected at least one training study, found none: nothing to train on")
    taken = count()
    while True:
        order = torch.randperm(studies.patients, generator=generator)
        shares = torch.rand(studies.patients, dtype=torch.float64, generator=generator)
        for batch in torch.split(studies.choose(shares)[order], batch_size):
            if next(taken) >= steps:
                return
            yield batch


class _StudiesByPatient:
    """Indices of studies, grouped by patient."""

    def __init__(self, patients: Tensor) -> None:
        _, self._counts = torch.unique(patients, sorted=True, return_counts=True)
        self._order = torch.argsort(patients, stable=True)
        self._starts = self._counts.cumsum(0) - self._counts
        self.patients = len(self._counts)

    def choose(self, shares: Tensor) -> Tensor:
        """Return one study of each patient, int64 [patients].

        ``shares``, float64 [patients] in [0, 1), says how far down a patient's studies.
        """
        return self._order[self._starts + (shares * self._counts).long()]


def _below(words: NDArray[np.uint64], rate: float) -> NDArray[np.bool_]:
    """Whether each word is below ``rate`` times 2^64, compared as integers."""
    threshold = int(rate * 2.0**64)  # exact before it is cut to an integer
    if threshold == 2**64:
        return np.ones(len(words), dtype=np.bool_)
    return words < np.uint64(threshold)
