"""The bound beside exact fractions, and how often it exceeds a known epsilon."""

from fractions import Fraction
from math import comb, exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.privacy.audit.bound import (
    SHARES,
    best_guesses,
    largest_bound,
    lower_bound,
    p_value,
)


def exact_p_value(m: int, r: int, v: int, odds: Fraction, delta: Fraction) -> Fraction:
    """The theorem word by word; ``odds`` is e^epsilon as a fraction."""
    q = odds / (odds + 1)
    chance = [comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    beta = sum((chance[k] for k in range(v, r + 1)), Fraction(0))
    alpha = Fraction(0)
    for i in range(1, m + 1):
        between = sum((chance[k] for k in range(max(v - i, 0), v)), Fraction(0))
        alpha = max(alpha, between / i)
    return min(Fraction(1), beta + 2 * m * delta * alpha)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_p_value_equals_exact_fractions(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 24))
    r = data.draw(st.integers(0, m))
    v = data.draw(st.integers(0, r))
    odds = data.draw(st.fractions(1, 20, max_denominator=50))
    delta = data.draw(st.sampled_from([Fraction(0), Fraction(1, 1000), Fraction(1, 20)]))
    found = p_value(
        canaries=m, guesses=r, right=v, epsilon=float(np.log(float(odds))), delta=float(delta)
    )
    assert found == pytest.approx(float(exact_p_value(m, r, v, odds, delta)), rel=1e-9)


def bound(right: int, **changes: float) -> float:
    values = {"canaries": 1000, "guesses": 200, "delta": 1e-5, "confidence": 0.999} | changes
    return lower_bound(right=right, **values)  # type: ignore[arg-type]


def test_the_bound_is_where_the_p_value_reaches_the_level() -> None:
    found = bound(190)
    at = {"canaries": 1000, "guesses": 200, "right": 190, "delta": 1e-5}
    assert 1.5 < found < 2.5
    assert p_value(epsilon=found, **at) <= 0.001 < p_value(epsilon=found + 1e-6, **at)


def test_the_bound_grows_with_right_guesses_and_falls_with_delta_confidence_and_canaries() -> None:
    steps = [bound(right) for right in range(100, 201, 10)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1] > 2.5) == (0.0, True)
    assert bound(190, delta=0.0) > bound(190) > bound(190, delta=1.5e-5) > 0
    assert bound(190, confidence=0.9) > bound(190) > bound(190, confidence=0.9995) > 0
    assert bound(190, canaries=200) > bound(190) > bound(190, canaries=1500) > 0
    assert bound(190, delta=1e-3) == 0.0  # delta alone explains it


def test_all_right_without_delta_is_the_closed_form() -> None:
    # q ** r = 1 - confidence
    q = 0.001 ** (1 / 200)
    assert bound(200, delta=0.0) == pytest.approx(np.log(q / (1 - q)), abs=1e-6)


def randomised_response(epsilon: float, m: int, rng: np.random.Generator):
    """Scores that are an epsilon-DP answer about each coin, in an order that tells nothing."""
    included = rng.random(m) < 0.5
    truthful = rng.random(m) < exp(epsilon) / (1 + exp(epsilon))
    return np.where(truthful, included, ~included) + rng.random(m) * 0.5, included


def test_the_bound_rarely_exceeds_a_known_epsilon() -> None:
    rng, over, near = np.random.default_rng(0), 0, 0
    for _ in range(150):
        scores, included = randomised_response(1.0, 200, rng)
        found = best_guesses(scores, included, delta=0.0, confidence=0.8).bound
        over += found > 1.0
        near += found > 0.6
    assert near > 100  # it is not safe by being useless
    assert 0 < over < 30  # 20% of them


def test_guesses_follow_the_scores_alone() -> None:
    m = 1000
    included = np.arange(m) % 2 == 0
    perfect = best_guesses(included + 0.0, included, delta=1e-5, confidence=0.999)
    assert perfect.right == perfect.guessed_in + perfect.guessed_out
    assert perfect.bound == largest_bound(canaries=m, delta=1e-5, confidence=0.999) > 3
    assert best_guesses(1.0 - included, included, delta=1e-5, confidence=0.999).bound == 0.0
    noise = np.random.default_rng(0).random(m)
    assert best_guesses(noise, included, delta=1e-5, confidence=0.999).bound == 0.0


def test_more_ways_to_guess_cost_confidence() -> None:
    m, share = 1000, 1 - 0.001 / len(SHARES)
    alone = lower_bound(canaries=m, guesses=m, right=m, delta=1e-5, confidence=share)
    assert largest_bound(canaries=m, delta=1e-5, confidence=0.999) == alone
    assert largest_bound(canaries=m, delta=1e-3, confidence=0.999) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [{"right": 5, "guesses": 4}, {"canaries": 3}, {"epsilon": -1.0}, {"delta": 2.0}],
)
def test_refusals(wrong: dict[str, float]) -> None:
    sound = {"canaries": 10, "guesses": 4, "right": 2, "epsilon": 1.0, "delta": 0.0}
    with pytest.raises(ValueError, match="Expected"):
        p_value(**(sound | wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="confidence"):
        lower_bound(canaries=10, guesses=4, right=2, delta=0.0, confidence=1.0)
