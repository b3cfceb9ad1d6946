"""Replies as a Node makes them, for tests of what the coordinator does with them."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from medfusion.transport.requests import ARRAYS, METRICS, REPLY, WEIGHT_KEY, reply_with

# Flower makes messages only inside a task of its own.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def make_reply(arrays, weight, *, node=1, selected=None):
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    content = RecordDict({ARRAYS: record, METRICS: MetricRecord({WEIGHT_KEY: weight})})
    if selected is not None:
        content[REPLY] = reply_with({"selected": selected})[REPLY]
    return Message(content, node, "train")
