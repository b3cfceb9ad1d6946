"""Averages a feature's parameters over the sites that selected it.

Under local selection a site trains only the parameters of its own features. A site's other
rows are replaced by the mean of those that did select the feature, weighted as the strategy
weighs them, so that any weighted mean over all sites equals the mean over the selecting ones.
Where no site selected a feature, its rows stay those of the incoming model.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from medfusion.models.spec import FeatureAxis
from medfusion.transport.requests import ARRAYS, METRICS, WEIGHT_KEY, read_reply


def fill_unselected(
    replies: Mapping[str, Message],
    incoming: ArrayRecord,
    columns: Mapping[str, FeatureAxis],
) -> None:
    """Rewrite the replies' arrays in place.

    Parameters
    ----------
    columns
        For each parameter that is indexed by model-input column: the axis, and how many
        consecutive entries along it belong to one column.
    """
    selected = np.array([read_reply(reply.content)["selected"] for reply in replies.values()], bool)
    weights = np.array(
        [reply.content.metric_records[METRICS][WEIGHT_KEY] for reply in replies.values()], float
    )
    share = selected * weights[:, None]
    total = share.sum(axis=0)
    share = np.divide(share, total, out=np.zeros_like(share), where=total > 0)
    for name, (axis, width) in columns.items():
        stack = np.stack([_moved(reply, name, axis) for reply in replies.values()])
        site_share = _spread(share, width, stack.ndim)
        mean = (stack * site_share).sum(axis=0)
        unchosen = _spread(total[None] == 0, width, stack.ndim)[0]
        mean = np.where(unchosen, np.moveaxis(incoming[name].numpy(), axis, 0), mean)
        kept = np.where(_spread(selected, width, stack.ndim), stack, mean)
        for reply, array in zip(replies.values(), kept, strict=True):
            restored = np.ascontiguousarray(np.moveaxis(array, 0, axis), dtype=np.float32)
            reply.content.array_records[ARRAYS][name] = Array(restored)


def _moved(reply: Message, name: str, axis: int) -> np.ndarray:
    return np.moveaxis(reply.content.array_records[ARRAYS][name].numpy(), axis, 0)


def _spread(per_column: np.ndarray, width: int, dimensions: int) -> np.ndarray:
    """Repeat [sites, K] over each column's entries and add the parameter's other axes."""
    wide = np.repeat(per_column, width, axis=1)
    return wide.reshape(*wide.shape, *(1,) * (dimensions - 2))
