"""Net benefit against its definition, study by study."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medfusion.evaluation.decision_curve import THRESHOLDS, decision_curve_json
from medfusion.evaluation.metrics import counts_at_scores, sigmoid

STUDIES = st.lists(
    st.tuples(st.floats(-5, 5), st.booleans(), st.booleans()), min_size=1, max_size=40
)


def by_hand(probability, truth, threshold):
    """Count one study after another, as Vickers and Elkin (2006) write it."""
    total = 0.0
    for risk, ill in zip(probability, truth, strict=True):
        if risk >= threshold:
            total += 1.0 if ill else -threshold / (1 - threshold)
    return total / len(truth)


@given(STUDIES)
def test_net_benefit_counts_true_and_weighs_false_actions(rows):
    logits, truth, known = (np.array(column)[:, None] for column in zip(*rows, strict=True))
    counts, scores = counts_at_scores(logits, truth, known)
    found = decision_curve_json(counts[0], sigmoid(scores[0]))
    if not known.any():
        assert found is None
        return
    risk = 0.5 * (1 + np.tanh(0.5 * logits[known]))
    for number, threshold in enumerate(THRESHOLDS):
        assert np.isclose(found["model"][number], by_hand(risk, truth[known], threshold))
        everybody = by_hand(np.ones(known.sum()), truth[known], threshold)
        assert np.isclose(found["all"][number], everybody)


def test_at_the_prevalence_acting_on_everybody_is_as_good_as_on_nobody():
    found = decision_curve_json(np.array([[7.0], [3.0]]), np.array([0.3]))
    at = found["thresholds"].index(0.3)
    assert abs(found["all"][at]) < 1e-12
    assert found["model"][at] == found["all"][at]
    assert found["model"][at + 1] == 0.0
