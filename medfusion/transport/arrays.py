"""Trainable state to Flower's ArrayRecord and back; nothing in it is pickled."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from medfusion.errors import FederationError


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return the tensors as float32 arrays in the order of their names."""
    return ArrayRecord(
        {
            name: Array(np.asarray(state[name].detach().cpu().float().numpy(), order="C"))
            for name in sorted(state)
        }
    )


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of a record (own memory, float32).

    Raises
    ------
    FederationError
        If one of them is no array.
    """
    try:
        return {
            name: torch.from_numpy(np.array(array.numpy(), dtype=np.float32, order="C"))
            for name, array in record.items()
        }
    except Exception as error:  # bytes from outside can break NumPy's reader in any way
        raise FederationError(f"an array cannot be read ({type(error).__name__})") from None


def check_matches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a state whose names, shapes or finiteness differ from what the model holds.

    Raises
    ------
    FederationError
        Naming the first parameter that differs.
    """
    if missing := sorted(set(expected) ^ set(state)):
        raise FederationError(
            f"expected the {len(expected)} trainable parameters of the model, found "
            f"{len(state)}; the first that differs is {missing[0]!r}: are all sides on one version?"
        )
    for name, tensor in expected.items():
        found = state[name]
        if found.shape != tensor.shape:
            raise FederationError(
                f"parameter {name!r}: expected shape {tuple(tensor.shape)}, "
                f"found {tuple(found.shape)}"
            )
        if not bool(torch.isfinite(found).all()):
            raise FederationError(f"parameter {name!r} holds NaN or infinity")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hex digest of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
