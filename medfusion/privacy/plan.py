"""The privacy plan of a run at one site: clip, sampling, noise and accounting in one object."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from medfusion.errors import ConfigError, DataError
from medfusion.privacy.accounting import epsilon
from medfusion.privacy.options import PrivacyOptions
from medfusion.privacy.plan_calibration import calibrate, other_releases


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

    @classmethod
    def from_card(cls, recorded: Mapping[str, Any], *, site: str) -> Self:
        """Return the plan of ``site`` that a model card holds beside its epsilon.

        Fields with a default may be missing: cards are older than some of them.

        Raises
        ------
        DataError
            If a field is missing, unknown, or cannot be what it is.
        """
        where = f"model.json: privacy.sites.{site}"
        given = {name: value for name, value in recorded.items() if name != "epsilon"}
        required = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in required if name not in given]
        if missing:
            raise DataError(f"{where}: missing {', '.join(missing)}")
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}") from None

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
            releases=other_releases(
                self.selection_noise, self.metrics_noise, self.metrics_releases
            ),
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
        If no noise within the bounds of `plan_calibration` reaches the target; the message
        names the nearest epsilon that is possible.
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
    training, selection, metrics = calibrate(
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
