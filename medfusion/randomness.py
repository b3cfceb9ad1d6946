"""Named random streams: one generator for each use, so that no use disturbs another.

A *public* stream starts from the run's seed: initial weights, shuffles, modality dropout. A
*private* one starts from the site's secret: Poisson draws and noise, which a public seed
would give away.
"""

import hashlib

import torch


def derive_seed(root: int | bytes, *names: str | int) -> int:
    """Return a 64-bit seed for the stream called ``names`` under ``root``."""
    digest = hashlib.sha256(root if isinstance(root, bytes) else str(root).encode())
    for name in names:
        encoded = str(name).encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)  # ("ab","c") is not ("a","bc")
    return int.from_bytes(digest.digest()[:8], "big") >> 1  # torch takes a signed 64-bit seed


def stream(root: int | bytes, *names: str | int) -> torch.Generator:
    """Return a CPU generator at the start of the stream called ``names`` under ``root``."""
    return torch.Generator().manual_seed(derive_seed(root, *names))
