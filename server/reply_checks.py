"""What a site's reply must be before the coordinator computes with it.

Each check raises `FederationError`; `server.exchange.exchange` then counts the site among those
that failed, so that one site's broken reply costs no more than one that never came.
"""

import math

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from medfusion.errors import FederationError
from medfusion.transport.arrays import check_matches, from_record
from medfusion.transport.compress import Codec
from medfusion.transport.requests import (
    ARRAYS,
    LOSS_KEY,
    MASKED,
    METRICS,
    WEIGHT_KEY,
    read_histograms,
    read_reply,
)
from medfusion.transport.updates import moved_by

_MOST = 2.0**53  # beyond, a float no longer counts


def check_trained(
    reply: Message, expected: dict[str, Tensor], *, patients: int, reports_loss: bool
) -> None:
    """Refuse a trained model that does not fit the one that was sent out, or another weight."""
    _check_metrics(reply, patients, {WEIGHT_KEY, LOSS_KEY} if reports_loss else {WEIGHT_KEY})
    records = reply.content.array_records
    if set(records) != {ARRAYS}:
        raise FederationError(f"expected one record of arrays, found {len(records)}")
    kinds = {str(array.numpy().dtype) for array in records[ARRAYS].values()} - {"float32"}
    if kinds:
        raise FederationError(f"expected float32 parameters, found {', '.join(sorted(kinds))}")
    state = from_record(records[ARRAYS])
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise FederationError(
            "the model diverged at this site (NaN or infinity); try a lower training.learning_rate"
        )
    check_matches(state, expected)


def unpack_update(reply: Message, incoming: ArrayRecord, codec: Codec) -> None:
    """Put the model that a compressed update leads to in its place; raises if there is none."""
    if codec.level == "none":
        return
    records = reply.content.array_records
    if set(records) != {ARRAYS}:
        raise FederationError(f"expected one record of arrays, found {len(records)}")
    packed = {name: array.numpy() for name, array in records[ARRAYS].items()}
    reply.content[ARRAYS] = moved_by(incoming, codec.unpack(packed))


def check_masked(reply: Message, size: int, *, patients: int) -> None:
    """Refuse a masked update of another length, or another weight; no number in it is wrong."""
    _check_metrics(reply, patients, {WEIGHT_KEY})
    records = reply.content.array_records
    if set(records) != {ARRAYS} or set(records[ARRAYS]) != {MASKED}:
        raise FederationError("expected one masked update")
    masked = records[ARRAYS][MASKED].numpy()
    if masked.dtype != np.uint32 or masked.shape != (size,):
        raise FederationError(f"expected {size} masked numbers, found {masked.shape}")


def check_mask(reply: Message, columns: int) -> None:
    """Refuse a reply that does not say, column by column, what the site selected."""
    mask = read_reply(reply.content)["selected"]
    if len(mask) != columns or not set(mask) <= {0, 1}:
        raise FederationError(f"expected a mask of {columns} columns, found another one")


def check_histograms(reply: Message, shape: tuple[int, ...], *, patients: int) -> None:
    """Refuse histograms of another shape, or that are not numbers of patients."""
    _check_metrics(reply, patients, {WEIGHT_KEY})
    histograms = read_histograms(reply.content)
    if histograms.shape != shape:
        raise FederationError(
            f"histograms: expected shape {shape}, found {histograms.shape}; "
            "are all sides on one version?"
        )
    if histograms.dtype != np.float64 or not (np.abs(histograms) < _MOST).all():  # also NaN
        raise FederationError("histograms: expected counts, found NaN, infinity or beyond 2^53")


def _check_metrics(reply: Message, patients: int, keys: set[str]) -> None:
    records = reply.content.metric_records
    metrics = records[METRICS] if set(records) == {METRICS} else MetricRecord()
    if set(metrics) != keys:
        raise FederationError(f"expected the metrics {sorted(keys)}, found {sorted(metrics)}")
    weight = metrics[WEIGHT_KEY]
    if weight != patients:
        raise FederationError(
            f"weight: expected the {patients} patients that the site declared, found {weight}"
        )
    if LOSS_KEY in keys:
        loss = metrics[LOSS_KEY]
        if isinstance(loss, list) or not math.isfinite(loss) or loss < 0:
            raise FederationError("expected a finite training loss")
