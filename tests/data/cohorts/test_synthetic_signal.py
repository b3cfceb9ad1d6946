import numpy as np
import pytest

from medfusion.data.cohorts.synthetic_notes import write_note
from medfusion.data.cohorts.synthetic_signal import (
    CONCEPTS,
    CUT_POINTS,
    FEATURES,
    LABELS,
    LASTING_FEATURES,
    Parts,
    Presence,
    draw_findings,
    draw_labels,
    known_probabilities,
    marginals,
    parts_of,
)


@pytest.mark.parametrize("seed", [0, 1])
def test_marginals_are_the_frequencies_of_drawn_labels(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, size=len(LABELS))
    drawn = draw_labels(np.tile(logits, (40_000, 1)), rng)
    np.testing.assert_allclose(drawn.mean(axis=0), marginals(logits[None])[0], atol=0.012)


def test_rare_label_needs_the_common_one():
    rng = np.random.default_rng(0)
    labels = draw_labels(rng.normal(0, 2, size=(5_000, len(LABELS))), rng)
    pneumonia, shock = labels[:, LABELS.index("pneumonia")], labels[:, LABELS.index("septic_shock")]
    assert shock.sum() > 100
    assert not (shock & ~pneumonia).any()


def test_probability_is_exact_when_nothing_is_missing():
    rng = np.random.default_rng(0)
    parts = parts_of(draw_findings(np.arange(50), rng))
    held = Presence(
        features=np.ones((50, len(FEATURES)), bool), image=np.ones(50, bool), text=np.ones(50, bool)
    )
    bias = np.linspace(-2, 0, len(LABELS))
    exact = marginals(bias + parts.features.sum(axis=1) + parts.image + parts.text)
    np.testing.assert_allclose(known_probabilities(parts, held, bias, rng), exact, rtol=1e-12)


def test_missing_modality_is_averaged_out():
    # Half of the studies have an image part of +3, half of -3; nothing else differs.
    image = np.repeat([3.0, -3.0], 500)[:, None] * np.eye(len(LABELS))[:1]
    zeros = np.zeros((1000, len(LABELS)))
    parts = Parts(features=np.zeros((1000, len(FEATURES), len(LABELS))), image=image, text=zeros)
    seen = np.tile([True, False], 500)
    presence = Presence(
        features=np.ones((1000, len(FEATURES)), bool), image=seen, text=np.ones(1000, bool)
    )
    bias = np.array([1.0, 0, 0, 0, 0])
    probability = known_probabilities(parts, presence, bias, np.random.default_rng(0), draws=400)
    high, low = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(2))
    np.testing.assert_allclose(probability[seen, 0], np.where(image[seen, 0] > 0, high, low))
    np.testing.assert_allclose(probability[~seen, 0], (high + low) / 2, atol=0.08)


def test_findings_are_independent_of_one_another():
    findings = draw_findings(np.arange(20_000), np.random.default_rng(0))
    everything = np.concatenate([findings.features, findings.image, findings.concepts], axis=1)
    correlation = np.corrcoef(everything.T) - np.eye(everything.shape[1])
    assert np.abs(correlation).max() < 0.035  # five standard errors


def test_studies_of_a_patient_resemble_one_another():
    findings = draw_findings(np.repeat(np.arange(3_000), 2), np.random.default_rng(0))
    first, second = findings.features[::2], findings.features[1::2]
    names = list(FEATURES)
    for name in LASTING_FEATURES:
        column = names.index(name)
        np.testing.assert_array_equal(first[:, column], second[:, column])
    column = names.index("bnp")
    assert 0.2 < np.corrcoef(first[:, column], second[:, column])[0, 1] < 0.6


@pytest.mark.parametrize("cut", CUT_POINTS, ids=lambda cut: cut.feature)
def test_cut_points_lie_on_a_public_bin_edge_and_step_there(cut):
    feature = FEATURES[cut.feature]
    position = (cut.value - feature.low) / (feature.high - feature.low) * 32
    assert position == pytest.approx(round(position))
    findings = draw_findings(np.arange(2), np.random.default_rng(0))
    column = list(FEATURES).index(cut.feature)
    findings.features[:, column] = [cut.value, cut.value + 0.01]
    below, above = parts_of(findings).features[:, column, LABELS.index(cut.label)]
    sign = 1 if cut.direction == "above" else -1
    assert above - below == pytest.approx(sign * cut.weight, abs=0.05)


def test_features_stay_inside_their_public_range():
    findings = draw_findings(np.arange(20_000), np.random.default_rng(0))
    for column, feature in enumerate(FEATURES.values()):
        if feature.kind == "numeric":
            values = findings.features[:, column]
            assert feature.low < values.min() < values.max() < feature.high


def test_notes_say_every_present_concept_and_deny_none():
    rng = np.random.default_rng(0)
    none = {write_note(np.zeros(len(CONCEPTS), bool), rng) for _ in range(500)}
    aside_words = {word for note in none for word in note.lower().replace(".", "").split()}
    for position, concept in enumerate(CONCEPTS):
        present = np.arange(len(CONCEPTS)) == position
        notes = {write_note(present, rng) for _ in range(100)}
        assert len(notes) > 20, concept
        for note in notes:
            words = set(note.lower().replace(".", "").replace(",", "").split())
            assert words - aside_words, concept
    longest = max(
        (write_note(np.ones(len(CONCEPTS), bool), rng).split() for _ in range(300)), key=len
    )
    assert len(longest) <= 50
    everything = aside_words | {word.lower() for word in longest}
    assert not everything & {"no", "not", "without", "denies", "absent"}
