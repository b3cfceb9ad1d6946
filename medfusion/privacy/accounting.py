"""Epsilon of Gaussian releases and Poisson-sampled Gaussian steps, composed as one.

Figures come from privacy loss distributions [1]_ as computed by ``dp-accounting``, which rounds
losses upwards: every epsilon is an upper bound.

References
----------
.. [1] Meiser and Mohammadi, "Tight on budget?", CCS 2018; Doroshenko et al., "Connect the
   dots", PoPETs 2022.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_INTERVAL = 1e-4  # grid of the privacy loss where epsilon is ordinary
_ORDINARY = (0.5, 16.0)


@dataclass(frozen=True, order=True)
class NoisedSums:
    """``count`` sums over patients with Gaussian noise; every field is public.

    Parameters
    ----------
    noise_multiplier
        Noise over the most that one patient contributes.
    sample_rate
        Probability with which each patient takes part in a sum; 1 for all patients.
    count
        Equal sums, each with a draw and noise of its own.
    """

    noise_multiplier: float
    sample_rate: float
    count: int

    def dp_event(self) -> "DpEvent":
        """Return the event that ``dp-accounting`` computes with."""
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

        event = GaussianDpEvent(self.noise_multiplier)
        if self.sample_rate < 1:
            event = PoissonSampledDpEvent(self.sample_rate, event)
        return SelfComposedDpEvent(event, self.count)


Events = tuple[NoisedSums, ...]
"""What was or will be released; `merged` makes equal compositions equal tuples."""


def merged(events: Iterable[NoisedSums]) -> Events:
    """Return the same composition with equal sums counted together, in a fixed order."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        counts[key] = counts.get(key, 0) + event.count
    return tuple(sorted(NoisedSums(*key, count) for key, count in counts.items() if count))


def epsilon(
    *,
    delta: float,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    releases: tuple[tuple[float, int], ...] = (),
    interval: float | None = None,
) -> float:
    """Return the epsilon of ``steps`` sampled Gaussian steps and of ``releases``, at ``delta``.

    Parameters
    ----------
    delta
        Failure probability of the whole composition, 0 < delta < 1.
    noise_multiplier
        Noise of a step over its sensitivity (one patient's largest contribution).
    sample_rate
        Probability with which each patient takes part in a step, 0 < sample_rate <= 1.
    steps
        Steps of the whole run; 0 leaves training out.
    releases
        Pairs (noise multiplier, count) of Gaussian releases over all patients.
    interval
        Grid of the privacy loss. Unset, it is chosen so that epsilon is right to about 0.1%.

    Notes
    -----
    The relation is *zero-out*: one patient's record is replaced by an empty one. That is
    dp-accounting's ``REPLACE_SPECIAL``; for Gaussian events, sampled or not, it has the loss
    distribution of add-or-remove-one, without making the number of patients a secret.
    """
    events = [NoisedSums(noise, 1.0, count) for noise, count in releases]
    events.append(NoisedSums(noise_multiplier, sample_rate, steps))
    return composed_epsilon(merged(events), delta=delta, interval=interval)


def composed_epsilon(events: Events, *, delta: float, interval: float | None = None) -> float:
    """Return the epsilon of merged ``events`` at ``delta``; arguments as of `epsilon`.

    It holds for events whose parameters were fixed before the first of them; how the queries
    behind them were chosen does not matter. Results are kept, so that asking again is free.
    """
    return _composed(events, delta, interval) if events else 0.0


@lru_cache(maxsize=512)
def _composed(events: Events, delta: float, interval: float | None) -> float:
    # Imported here: it takes half a second, which runs without privacy need not wait for.
    from dp_accounting import ComposedDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    if interval is None:
        interval = _interval(events, delta)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, interval)
    # One self-composition per kind of event: PLDs of equal steps are powers of one another,
    # and Gaussian ones merge in closed form.
    accountant.compose(ComposedDpEvent([event.dp_event() for event in events]))
    return float(accountant.get_epsilon(delta))


def _interval(events: Events, delta: float) -> float:
    """Return a grid in proportion to epsilon, found from coarse (over-)estimates of it."""
    low, high = _ORDINARY
    rough = inf
    for coarse in (1e-2, 1e-3, 1e-4):
        rough = composed_epsilon(events, delta=delta, interval=coarse)
        if rough > 200 * coarse:  # the grid was fine enough for the estimate to hold
            break
    if rough > high:
        return _INTERVAL * rough / high
    return _INTERVAL if rough >= low else _INTERVAL * max(rough / low, 0.01)


def solve_decreasing(
    function: Callable[[float], float], target: float, *, low: float, high: float, start: float
) -> float:
    """Return x in [low, high] with 0.996 target <= function(x) <= target.

    ``function`` is positive, continuous and falls as x grows. Where all of [low, high] lies on
    one side of the target, the end nearest to it is returned. The search is a bracketed secant
    (Illinois) on logarithms, in which an epsilon is nearly linear in a noise multiplier.
    """

    def distance(u: float) -> float:
        return log(min(max(function(exp(u)), 1e-12), 1e12) / (0.998 * target))

    near = 0.0019
    u_low, u_high = log(low), log(high)
    b = min(max(log(start), u_low), u_high)
    at_a = at_b = distance(b)
    a, end = b, (u_high if at_b > 0 else u_low)
    step = min(max(abs(at_b), 0.01), 1.5)  # slopes are -1 or steeper: this overshoots the zero
    while (at_a > 0) == (at_b > 0) and abs(at_b) > near:
        if b == end:
            return exp(end)
        a, at_a = b, at_b
        b = min(b + step, end) if end == u_high else max(b - step, end)
        at_b = distance(b)
    for _ in range(60):
        if abs(at_b) <= near:
            return exp(b)
        u = b - at_b * (b - a) / (at_b - at_a)
        at = distance(u)
        if (at > 0) == (at_b > 0):
            at_a /= 2  # the same end moved twice: pull the secant towards the other one
        else:
            a, at_a = b, at_b
        b, at_b = u, at
    return exp(max(a, b))
