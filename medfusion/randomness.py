"""Public random streams: one generator for each use, so that no use disturbs another.

They start from the run's seed: shuffles, augmentation and modality dropout without privacy.
What must stay secret comes from `medfusion.privacy.keystream`. Torch's own seeding keeps 32
bits of a seed, so the whole state of a generator is filled instead.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

# The CPU generator is a Mersenne twister of 624 words; its state holds each word in 8 bytes.
GENERATOR_WORDS = 624
_OFFSET, _WORD_BYTES = 24, 8
_KEY_BYTES = 32


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator at the start of the stream called ``names`` under ``seed``."""
    parts = [str(part).encode() for part in (seed, *names)]
    # Each part with its length: ("ab", "c") is not ("a", "bc").
    return _keyed(b"".join(len(part).to_bytes(8, "big") + part for part in parts))


def spawn(parent: torch.Generator) -> torch.Generator:
    """Return a CPU generator that starts from the next bits of ``parent``."""
    key = torch.randint(256, (_KEY_BYTES,), generator=parent, dtype=torch.uint8)
    return _keyed(key.numpy().tobytes())


def generator_from(words: NDArray[np.uint32]) -> torch.Generator:
    """Return a CPU generator whose state is ``words``, uint32 [`GENERATOR_WORDS`]."""
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    filled = torch.from_numpy(words.astype("<u8").view(np.uint8))
    state[_OFFSET : _OFFSET + _WORD_BYTES * GENERATOR_WORDS] = filled
    generator.set_state(state)
    return generator


def _keyed(key: bytes) -> torch.Generator:
    digest = hashlib.shake_256(key).digest(4 * GENERATOR_WORDS)
    return generator_from(np.frombuffer(digest, dtype="<u4"))
