"""Privacy plans of tests."""

from typing import Any

from medfusion.privacy.plan import DpPlan


def training_plan(
    patients: int,
    rate: float,
    *,
    noise: float,
    steps: int = 1,
    rounds: int = 1,
    clip: float = 1.0,
    **others: Any,
) -> DpPlan:
    """Return a plan that releases models and nothing else; ``others`` are further fields."""
    return DpPlan(
        patients_public=patients,
        delta=1e-5,
        sample_rate=rate,
        expected_batch=patients * rate,
        steps_per_round=steps,
        rounds=rounds,
        max_grad_norm=clip,
        noise_multiplier=noise,
        **({"selection_noise": None, "metrics_noise": None, "metrics_releases": 0} | others),
    )
