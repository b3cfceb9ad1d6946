"""What one part exists for is found by it, and lost without it, on fresh studies."""

import planted_parts
import pytest
from planted import measure


@pytest.fixture
def gains():
    """Measure an effect on four seeds: AUROC with the part, and its mean gain."""

    def of(effect):
        runs = [measure(effect, seed) for seed in range(4)]
        gain = sum(run["with"] - run["without"] for run in runs) / len(runs)
        return min(run["with"] for run in runs), gain

    return of


def test_thresholds_find_steps_among_noise_features(gains):
    found, gain = gains(planted_parts.THRESHOLDS)
    assert found > 0.80
    assert gain > 0.03


def test_label_queries_find_a_rare_label_through_a_common_one(gains):
    found, gain = gains(planted_parts.LABEL_QUERIES)
    assert found > 0.7
    assert gain > 0.02
