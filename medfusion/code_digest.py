"""A digest of the code that computes: another version may compute other gradients."""

from functools import cache
from pathlib import Path

import torch

from medfusion.digests import sha256_of


@cache
def code_sha256() -> str:
    """Return a hex digest of this package's modules as installed, and of torch's version."""
    package = Path(__file__).parent
    parts = [torch.__version__.encode()]
    for path in sorted(package.rglob("*.py")):
        parts += [str(path.relative_to(package)).encode(), path.read_bytes()]
    return sha256_of(parts)
