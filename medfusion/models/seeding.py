"""Initial weights from a public seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_LOCK = RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as seeded inside the block, as undisturbed after it.

    Layers draw their initial weights from the one generator of the process, so blocks of
    several threads run one after another; blocks may be nested.
    """
    with _LOCK:
        before = torch.get_rng_state()
        try:
            # torch.manual_seed would reseed the CUDA generators as well
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            torch.set_rng_state(before)
