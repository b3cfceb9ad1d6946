"""How much noise each release of a run gets, so that all together cost the target epsilon."""

from functools import lru_cache
from math import ceil, floor, log1p, log10, sqrt
from typing import Protocol

from medfusion.errors import ConfigError
from medfusion.privacy.accounting import epsilon, solve_decreasing
from medfusion.privacy.options import Shares

# Beyond the largest noise a release is noise and nothing else; below the smallest, or above the
# largest epsilon, nobody is protected.
MAX_NOISE_MULTIPLIER = 1000.0
MIN_NOISE_MULTIPLIER = 0.1
MAX_EPSILON = 100.0


Noise = tuple[float, float | None, float | None]  # training, selection, metrics


class _JointEpsilon(Protocol):
    def __call__(self, noise: Noise, interval: float | None = None) -> float: ...


@lru_cache(maxsize=64)
def calibrate(
    *,
    target: float,
    shares: Shares,
    delta: float,
    sample_rate: float,
    steps: int,
    selects: bool,
    metrics_releases: int,
) -> Noise:
    """Return the noise multipliers whose joint epsilon is the target.

    Arguments are those of `medfusion.privacy.plan.make_plan`; ``steps`` are those of all rounds.
    Results are kept.

    Raises
    ------
    ConfigError
        If no noise within the bounds has that epsilon.
    """

    def joint(noise: Noise, interval: float | None = None) -> float:
        return epsilon(
            delta=delta,
            noise_multiplier=noise[0],
            sample_rate=sample_rate,
            steps=steps,
            releases=other_releases(noise[1], noise[2], metrics_releases),
            interval=interval,
        )

    unit = (1.0, 1.0 if selects else None, 1.0 if metrics_releases else None)
    least = joint(_scaled(unit, MAX_NOISE_MULTIPLIER))
    if target < least:
        raise _impossible(target, _round_up(least))
    aim = min(target, MAX_EPSILON)
    alone = _noise_alone(aim, unit, shares, delta, sample_rate, steps, metrics_releases)
    noise = _scale_to_target(joint, alone, aim)
    most = joint(noise)
    if most < 0.98 * target:  # louder than the bounds allow
        raise _impossible(target, aim if most >= 0.98 * aim else -_round_up(-most))
    return noise


def _scale_to_target(joint: _JointEpsilon, alone: Noise, target: float) -> Noise:
    """Return ``alone`` times the factor that brings the joint epsilon to 0.99-1.0 target."""
    present = [noise for noise in alone if noise is not None]
    factor, aim = 0.9, target
    for _ in range(3):
        factor = solve_decreasing(
            lambda factor: joint(_scaled(alone, factor), target / 4000),
            aim,
            low=MIN_NOISE_MULTIPLIER / max(present),
            high=MAX_NOISE_MULTIPLIER / min(present),
            start=factor,
        )
        exact = joint(_scaled(alone, factor))
        if 0.99 * target <= exact <= target:
            break
        aim *= 0.998 * target / exact  # the search was made on a coarser grid, which errs high
    while joint(_scaled(alone, factor)) > target:
        factor *= 1.001
    return _scaled(alone, factor)


def _noise_alone(
    target: float,
    unit: Noise,
    shares: Shares,
    delta: float,
    sample_rate: float,
    steps: int,
    metrics_releases: int,
) -> Noise:
    """Return the noise that each kind of release would need if it alone cost its share."""
    from dp_accounting.gaussian_mechanism import get_sigma_gaussian

    weights = (shares.training, shares.selection, shares.metrics)
    total = sum(w for w, present in zip(weights, unit, strict=True) if present)
    training, selection, metrics = (target * weight / total for weight in weights)
    # The search starts at the central limit of many sampled steps (Dong, Roth and Su, 2022).
    single = get_sigma_gaussian(training, delta)
    limit = 1 / sqrt(log1p(1 / (steps * (sample_rate * single) ** 2)))
    noise = solve_decreasing(
        lambda noise: epsilon(
            delta=delta,
            noise_multiplier=noise,
            sample_rate=sample_rate,
            steps=steps,
            interval=training / 400,  # only ratios are taken from here
        ),
        training,
        low=MIN_NOISE_MULTIPLIER,
        high=MAX_NOISE_MULTIPLIER,
        start=limit,
    )
    return (
        noise,
        get_sigma_gaussian(selection, delta) if unit[1] else None,
        get_sigma_gaussian(metrics, delta) * sqrt(metrics_releases) if unit[2] else None,
    )


def _impossible(target: float, nearest: float) -> ConfigError:
    return ConfigError(
        f"privacy.target_epsilon = {target:g} is impossible here; the nearest possible one is "
        f"{nearest:g} (noise multipliers of {MIN_NOISE_MULTIPLIER:g} to {MAX_NOISE_MULTIPLIER:g}, "
        f"an epsilon of {MAX_EPSILON:g} at most; it depends on the site's patients and delta, "
        "and on the run's rounds, steps and releases)"
    )


def _scaled(noise: Noise, factor: float) -> Noise:
    """Multiply each multiplier that is present, within the bounds on noise multipliers.

    The bounds hold one by one: where one release has reached its bound the others go on, so
    that every epsilon between all-largest and all-smallest noise is reached.
    """

    def scaled(value: float) -> float:
        return min(max(value * factor, MIN_NOISE_MULTIPLIER), MAX_NOISE_MULTIPLIER)

    training, selection, metrics = noise
    return (
        scaled(training),
        None if selection is None else scaled(selection),
        None if metrics is None else scaled(metrics),
    )


def other_releases(
    selection: float | None, metrics: float | None, metrics_releases: int
) -> tuple[tuple[float, int], ...]:
    """Return the Gaussian releases beside training, as pairs (noise multiplier, count)."""
    releases = [] if selection is None else [(selection, 1)]
    if metrics is not None:
        releases.append((metrics, metrics_releases))
    return tuple(releases)


def _round_up(value: float) -> float:
    """Round up to three significant digits."""
    digits = 2 - floor(log10(abs(value)))
    return round(ceil(value * 10.0**digits) / 10.0**digits, max(digits, 0))
