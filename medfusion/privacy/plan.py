"""The privacy plan of a run at one site: clip, sampling, noise and accounting in one object."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log1p, log10, sqrt
from typing import Protocol

from medfusion.errors import ConfigError
from medfusion.privacy.accounting import epsilon, solve_decreasing
from medfusion.privacy.options import PrivacyOptions, Shares

# Beyond the largest noise a release is noise and nothing else; below the smallest, or above the
# largest epsilon, nobody is protected.
MAX_NOISE_MULTIPLIER = 1000.0
MIN_NOISE_MULTIPLIER = 0.1
MAX_EPSILON = 100.0


@dataclass(frozen=True, kw_only=True)
class DpPlan:
    """What a run releases about a site's patients, and how noisily. Every field is public.

    Parameters
    ----------
    patients_public
        The site's declared number of training patients.
    delta
        Failure probability that the site sets for the whole run.
    sample_rate
        Probability with which a patient takes part in a step.
    expected_batch
        ``sample_rate * patients_public``: the denominator of every step's mean gradient.
    steps_per_round, rounds
        Training takes exactly ``steps_per_round * rounds`` steps.
    max_grad_norm
        Largest L2 norm of one patient's contribution to a step (C).
    noise_multiplier
        Standard deviation of a step's noise, over C.
    selection_noise
        Standard deviation of the noise on the selection histograms over their L2 sensitivity;
        None where nothing is selected.
    metrics_noise, metrics_releases
        The same for each of the ``metrics_releases`` releases of score histograms; None and 0
        where no metric leaves the site.
    unit_norm
        Whether the noised mean gradient is divided by C before it moves the weights.
    clip_quantile
        Share of unclipped patients that C follows within a round, from ``max_grad_norm``; a
        step's noise is then shared between gradient and count. None where C stays.
    """

    patients_public: int
    delta: float
    sample_rate: float
    expected_batch: float
    steps_per_round: int
    rounds: int
    max_grad_norm: float
    noise_multiplier: float
    selection_noise: float | None
    metrics_noise: float | None
    metrics_releases: int
    unit_norm: bool = False
    clip_quantile: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"Expected 0 < sample_rate={self.sample_rate} <= 1.")
        if not self.noise_multiplier > 0 or not self.max_grad_norm > 0:
            raise ValueError("Expected noise_multiplier > 0 and max_grad_norm > 0.")
        if (self.metrics_noise is None) != (self.metrics_releases == 0):
            raise ValueError("Expected metrics_noise exactly where metrics_releases > 0.")

    def epsilon(self) -> float:
        """Return the epsilon, at ``delta``, of everything that the plan releases.

        Patients of the training and of the test part differ, so that nobody pays for both
        training and metrics; the sum is claimed for each patient all the same.
        """
        return epsilon(
            delta=self.delta,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps_per_round * self.rounds,
            releases=_releases(self.selection_noise, self.metrics_noise, self.metrics_releases),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before relying on this plan."""
        found = []
        if self.sample_rate == 1:
            found.append(
                f"batch_size reaches patients_public = {self.patients_public}: every patient "
                "takes part in every step, and sampling adds no privacy"
            )
        if self.delta * self.patients_public >= 1:
            found.append(
                f"delta = {self.delta:g} is not below 1 / patients_public "
                f"= {1 / self.patients_public:g}: it allows a patient's data to leak outright"
            )
        return tuple(found)


def make_plan(
    options: PrivacyOptions,
    *,
    patients_public: int,
    batch_size: int,
    steps_per_round: int,
    rounds: int,
    delta: float,
    selects: bool,
    metrics_releases: int,
) -> DpPlan:
    """Return the plan whose noise makes the whole run cost ``options.target_epsilon``.

    Each release gets the noise that its share of epsilon would ask for by itself; one common
    factor on all of them then brings the joint epsilon to at most the target and at least 99%
    of it. Results are kept, so that asking again is free.

    Raises
    ------
    ConfigError
        If the target is above `MAX_EPSILON`, or no noise multipliers between
        `MIN_NOISE_MULTIPLIER` and `MAX_NOISE_MULTIPLIER` reach it; the message names the
        nearest epsilon that is possible.
    """
    for name, value in (
        ("patients_public", patients_public),
        ("batch_size", batch_size),
        ("steps_per_round", steps_per_round),
        ("rounds", rounds),
    ):
        if value < 1:
            raise ConfigError(f"{name} = {value}: expected at least 1")
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta}: expected a number between 0 and 1")
    sample_rate = min(1.0, batch_size / patients_public)
    training, selection, metrics = _calibrate(
        target=options.target_epsilon,
        shares=options.shares,
        delta=delta,
        sample_rate=sample_rate,
        steps=steps_per_round * rounds,
        selects=selects,
        metrics_releases=metrics_releases,
    )
    return DpPlan(
        patients_public=patients_public,
        delta=delta,
        sample_rate=sample_rate,
        expected_batch=sample_rate * patients_public,
        steps_per_round=steps_per_round,
        rounds=rounds,
        max_grad_norm=options.max_grad_norm,
        noise_multiplier=training,
        selection_noise=selection,
        metrics_noise=metrics,
        metrics_releases=metrics_releases,
        unit_norm=options.unit_norm,
        clip_quantile=options.clip_quantile,
    )


_Noise = tuple[float, float | None, float | None]  # training, selection, metrics


class _JointEpsilon(Protocol):
    def __call__(self, noise: _Noise, interval: float | None = None) -> float: ...


@lru_cache(maxsize=64)
def _calibrate(
    *,
    target: float,
    shares: Shares,
    delta: float,
    sample_rate: float,
    steps: int,
    selects: bool,
    metrics_releases: int,
) -> _Noise:
    """Return the noise multipliers whose joint epsilon is the target."""

    def joint(noise: _Noise, interval: float | None = None) -> float:
        return epsilon(
            delta=delta,
            noise_multiplier=noise[0],
            sample_rate=sample_rate,
            steps=steps,
            releases=_releases(noise[1], noise[2], metrics_releases),
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


def _scale_to_target(joint: _JointEpsilon, alone: _Noise, target: float) -> _Noise:
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
    unit: _Noise,
    shares: Shares,
    delta: float,
    sample_rate: float,
    steps: int,
    metrics_releases: int,
) -> _Noise:
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


def _scaled(noise: _Noise, factor: float) -> _Noise:
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


def _releases(
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
