"""Features chosen from the sum of the sites' histograms."""

import math

import numpy as np

from medfusion.data.thresholds import (
    Selection,
    feature_label_histograms,
    select_features,
    selection_sensitivity,
)
from medfusion.models.registry import modalities_of
from medfusion.transport.requests import read_histograms, request_content
from server.asking import Asking
from server.exchange import broadcast
from server.run_state import Cost, Progress, RunContext


def federated_selection(
    context: RunContext, asking: Asking, progress: Progress
) -> Selection | None:
    """Ask the sites for their histograms and choose; None where the run selects otherwise.

    Leaves in ``progress`` what that cost, and whose histograms were summed.
    """
    task, options = context.task, asking.settings.selection
    if options.method != "federated" or "tabular" not in modalities_of(asking.settings.model, task):
        return None
    asking.show.phase("selecting features")
    content = request_content(asking.request(None))
    messages = broadcast("select", content, asking.connected().get_node_ids())
    features, labels = len(task.features), len(task.labels.names)
    nobody = feature_label_histograms(np.zeros((0, features)), np.zeros((0, labels)), task)
    cost = Cost()
    replies = asking.exchange(messages, asking.check_counts(nobody.shape), cost=cost)
    progress.cost.add(cost)
    progress.selected = list(replies.good)
    histograms = np.sum([read_histograms(r.content) for r in replies.good.values()], axis=0)
    plans = context.plans
    multipliers = [plans[name].selection_noise or 0.0 for name in replies.good if name in plans]
    noise = selection_sensitivity(task) * math.hypot(*multipliers)
    return select_features(histograms, task, options.top_n, noise=noise)
