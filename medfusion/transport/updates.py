"""A round's update as one vector: what training added to a model, in the order of the names."""

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray


def size_of(model: ArrayRecord) -> int:
    """Return P, the number of entries of all parameters."""
    return sum(array.numpy().size for array in model.values())


def update_of(trained: ArrayRecord, received: ArrayRecord) -> NDArray[np.float64]:
    """Return trained minus received, float64 [P]."""
    parts = [
        trained[name].numpy().astype(np.float64).ravel() - received[name].numpy().ravel()
        for name in sorted(received)
    ]
    return np.concatenate(parts)


def moved_by(received: ArrayRecord, update: NDArray[np.floating]) -> ArrayRecord:
    """Return the model, float32, that an update [P] leads to."""
    moved, start = {}, 0
    for name in sorted(received):
        before = received[name].numpy()
        step = update[start : start + before.size].reshape(before.shape)
        # numpy makes scalars of 0-d arrays
        moved[name] = Array(np.asarray(before + step.astype(np.float64), np.float32))
        start += before.size
    return ArrayRecord(moved)
