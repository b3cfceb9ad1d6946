"""A digest of the code that computes: another version may compute other gradients."""

import hashlib
from functools import cache
from pathlib import Path

import torch


@cache
def code_sha256() -> str:
    """Return a hex digest of this package's modules as installed, and of torch's version."""
    package = Path(__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
