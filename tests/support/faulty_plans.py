"""Plans that are executed otherwise than they say, for the audit to catch.

Faults are put in at the seams of the training that the audit drives: nothing of the product can
switch them on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from torch import Tensor

from medfusion.privacy import dp_sgd
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import poisson_batches
from medfusion.training import loop


@contextmanager
def executed_with(**factors: float) -> Iterator[None]:
    """Multiply fields of the plan that steps are taken by, as if the engine had got them wrong."""

    class Faulty(dp_sgd.PrivateSteps):
        def __init__(self, model: Any, optimizer: Any, plan: DpPlan, **rest: Any) -> None:
            changed = {name: getattr(plan, name) * by for name, by in factors.items()}
            super().__init__(model, optimizer, replace(plan, **changed), **rest)

    with patch.object(dp_sgd, "PrivateSteps", Faulty):
        yield


@contextmanager
def sampled(times: float) -> Iterator[None]:
    """Draw patients more often than the plan says."""

    def batches(patients: Tensor, *, sample_rate: float, **rest: Any) -> Iterator[Tensor]:
        return poisson_batches(patients, sample_rate=min(1.0, times * sample_rate), **rest)

    with patch.object(loop, "poisson_batches", batches):
        yield
