"""Named random streams: one generator for each use, so that no use disturbs another.

A *public* stream starts from the run's seed: shuffles and modality dropout without privacy. A
*private* one starts from the site's secret: Poisson draws and noise, which a public seed would
give away. Torch's own seeding keeps 32 bits of a seed, few enough to try them all, so the
whole state of the generator is filled from SHAKE-256 of root and names.
"""

import hashlib

import numpy as np
import torch

# The CPU generator is a Mersenne twister of 624 words; its state holds each word in 8 bytes.
_WORDS, _OFFSET, _WORD_BYTES = 624, 24, 8
_KEY_BYTES = 32


def stream(root: int | bytes, *names: str | int) -> torch.Generator:
    """Return a CPU generator at the start of the stream called ``names`` under ``root``."""
    key = root if isinstance(root, bytes) else str(root).encode()
    parts = [key, *(str(name).encode() for name in names)]
    # Each part with its length: ("ab", "c") is not ("a", "bc").
    return _keyed(b"".join(len(part).to_bytes(8, "big") + part for part in parts))


def spawn(parent: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator on ``device`` that starts from the next bits of ``parent``.

    On a GPU the generator has 64 bits of state, not more.
    """
    key = torch.randint(256, (_KEY_BYTES,), generator=parent, dtype=torch.uint8)
    if device.type == "cpu":
        return _keyed(key.numpy().tobytes())
    seed = int.from_bytes(key[:8].numpy().tobytes(), "big", signed=True)
    return torch.Generator(device).manual_seed(seed)


def _keyed(key: bytes) -> torch.Generator:
    words = np.frombuffer(hashlib.shake_256(key).digest(4 * _WORDS), dtype="<u4")
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    filled = torch.from_numpy(words.astype("<u8").view(np.uint8))
    state[_OFFSET : _OFFSET + _WORD_BYTES * _WORDS] = filled
    generator.set_state(state)
    return generator
