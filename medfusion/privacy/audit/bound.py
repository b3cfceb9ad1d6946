"""A lower confidence bound on epsilon from guesses about who took part in one run [1]_.

Each of m canaries takes part or not, by a fair coin of its own. An attacker sees all that the
run releases and guesses for some canaries which way the coin fell. If the run is (epsilon,
delta)-DP, the number of right guesses among r is at most as large as a binomial count of r
trials at e^epsilon / (e^epsilon + 1), but for a correction by delta. More right guesses than
that refute the epsilon.

References
----------
.. [1] Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023
   (arXiv 2305.08846), theorem 5.2.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, log1p

import numpy as np
from numpy.typing import NDArray

# Shares of the canaries guessed in and guessed out. They are fixed before a run, and the
# confidence is split among them: few guesses where scores overlap, all where they do not.
SHARES = ((0.2, 0.2), (0.5, 0.5))
_MOST = 64.0  # no bound above it is looked for


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How one way of guessing fared, and the bound that follows."""

    guessed_in: int
    guessed_out: int
    right: int
    bound: float


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return an upper bound on the chance of ``right`` or more right guesses under a claim.

    Parameters
    ----------
    canaries
        m, each of which took part by a fair coin.
    guesses
        r, the canaries guessed; the attacker abstains on the others.
    right
        v, the right ones among them.
    epsilon, delta
        The claim.

    Returns
    -------
    float
        P[W >= v] + 2 m delta max over i of P[v > W >= v - i] / i, at most 1, where W is
        binomial of r trials at e^epsilon / (e^epsilon + 1).

    Raises
    ------
    ValueError
        Unless 0 <= right <= guesses <= canaries, epsilon >= 0 and 0 <= delta <= 1.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(
            f"Expected 0 <= right={right} <= guesses={guesses} <= canaries={canaries}."
        )
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ValueError(f"Expected epsilon={epsilon} >= 0 and 0 <= delta={delta} <= 1.")
    chances = _binomial(guesses, epsilon)
    tail = float(chances[right:].sum())
    # Beyond i = v the chance grows no more, so that its i-th part is largest before.
    below = chances[:right][::-1].cumsum()
    most = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2 * canaries * delta * most)


def lower_bound(
    *, canaries: int, guesses: int, right: int, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that so many right guesses refute, 0 if they refute none.

    Raises
    ------
    ValueError
        As `p_value`, and unless 0 < confidence < 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected 0 < confidence={confidence} < 1.")

    def refuted(epsilon: float) -> bool:
        chance = p_value(
            canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta
        )
        return chance <= 1 - confidence

    if not refuted(0.0):
        return 0.0
    # Whatever is refuted is a valid bound: (epsilon, delta)-DP holds for any larger epsilon too.
    low, high = 0.0, 1.0
    while refuted(high) and high < _MOST:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def best_guesses(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    delta: float,
    confidence: float,
) -> Guesses:
    """Guess the highest scores in and the lowest out, in each of the `SHARES`; return the best.

    Parameters
    ----------
    scores
        [m], larger where the attacker holds it likelier that the canary took part.
    included
        [m], whether it did.
    delta, confidence
        The bound holds for (epsilon, delta)-DP with this confidence, over all the `SHARES`.
    """
    order = np.argsort(-scores, kind="stable")
    found = []
    for guessed_in, guessed_out in _counts(len(scores)):
        right = int(included[order[:guessed_in]].sum())
        right += int((~included[order[len(order) - guessed_out :]]).sum())
        bound = lower_bound(
            canaries=len(scores),
            guesses=guessed_in + guessed_out,
            right=right,
            delta=delta,
            confidence=_of_each(confidence),
        )
        found.append(
            Guesses(guessed_in=guessed_in, guessed_out=guessed_out, right=right, bound=bound)
        )
    return max(found, key=lambda guesses: guesses.bound)


def largest_bound(*, canaries: int, delta: float, confidence: float) -> float:
    """Return the bound that `best_guesses` gives where every guess is right.

    A claim at or above it cannot be refuted with so few canaries.
    """
    return max(
        lower_bound(
            canaries=canaries,
            guesses=guesses,
            right=guesses,
            delta=delta,
            confidence=_of_each(confidence),
        )
        for guesses in {sum(pair) for pair in _counts(canaries)}
    )


def _counts(canaries: int) -> list[tuple[int, int]]:
    return [(int(canaries * high), int(canaries * low)) for high, low in SHARES]


def _of_each(confidence: float) -> float:
    """Return the confidence of each way of guessing, so that all hold together (Bonferroni)."""
    return 1 - (1 - confidence) / len(SHARES)


def _binomial(trials: int, epsilon: float) -> NDArray[np.float64]:
    """Return the chances of 0 to ``trials`` successes at e^epsilon / (e^epsilon + 1)."""
    successes = np.arange(trials + 1)
    success, failure = -log1p(exp(-epsilon)), -epsilon - log1p(exp(-epsilon))
    chances: NDArray[np.float64] = np.exp(
        _log_ways(trials) + successes * success + (trials - successes) * failure
    )
    return chances


@lru_cache(maxsize=8)
def _log_ways(trials: int) -> NDArray[np.float64]:
    """Return the logarithms of the binomial coefficients of ``trials`` over 0 to ``trials``."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    ways: NDArray[np.float64] = logs[trials] - logs - logs[::-1]
    return ways
