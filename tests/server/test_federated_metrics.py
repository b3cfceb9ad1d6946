from types import SimpleNamespace

import numpy as np
import pytest

from medfusion.evaluation.multilabel_measures import MultilabelMeasures
from server.federated_metrics import federated_metrics

ILL = MultilabelMeasures(("ill",))


def histogram(seed):
    """Counts [1, 2, 32]: positives at higher logits than negatives."""
    generator = np.random.default_rng(seed)
    counts = [np.histogram(generator.normal(m, 2, 60), bins=32, range=(-8, 8))[0] for m in (-2, 2)]
    return np.array([counts], float)


def test_metrics_are_those_of_the_sum_over_sites():
    sites = {"b": histogram(1), "a": histogram(2)}
    together = federated_metrics(
        ILL, {"all": sites["a"] + sites["b"]}, {}, sensitivity=ILL.sensitivity
    )
    assert federated_metrics(ILL, sites, {}, sensitivity=ILL.sensitivity) == together
    assert together["auroc"]["ill"] == pytest.approx(0.92, abs=0.05)


def test_a_class_that_the_sites_noise_hides_has_no_auroc():
    """60 positives against noise of 10 a cell: 10 * sqrt(32) = 57 on their total."""
    plans = {"a": SimpleNamespace(metrics_noise=10.0)}
    assert federated_metrics(ILL, {"a": histogram(2)}, plans, sensitivity=ILL.sensitivity)[
        "auroc"
    ] == {"ill": None}
    assert federated_metrics(ILL, {"a": histogram(2)}, {}, sensitivity=ILL.sensitivity)[
        "auroc"
    ] != {"ill": None}
